"""The text of /metrics: both formats, as the parsers of prometheus-client read them."""

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest as generate_text
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse_text

from socks_tunnel.ops import exposition, multiprocess
from socks_tunnel.ops.exposition import Renderer, negotiate, render
from socks_tunnel.ops.meters import Files
from socks_tunnel.ops.metrics import Metrics


def write(directory: Path, slot: str = "worker-0") -> tuple[Metrics, Files]:
    metrics = Metrics()
    files = Files(directory, slot)
    for family in metrics.families():
        files.add(family)
    return metrics, files


def values(directory: Path) -> list[dict[tuple[str, tuple[tuple[str, str], ...]], float]]:
    """What each of the two formats says, by name and labels."""
    return [
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in families
            for sample in family.samples
        }
        for families in (
            parse_text(render(directory, "text").decode()),
            parse_openmetrics(render(directory, "openmetrics").decode()),  # type: ignore[no-untyped-call]
        )
    ]


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", "text"),
        ("*/*", "text"),
        ("text/plain", "text"),
        ("application/openmetrics-text", "openmetrics"),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", "openmetrics"),
        ("Application/OpenMetrics-Text;Version=0.0.1", "openmetrics"),
        ("application/openmetrics-text;version=2.0.0", "text"),
        ("application/openmetrics-text;q=0", "text"),
        ("application/openmetrics-text;q=0.5,text/plain", "text"),
        ("application/openmetrics-text;q=x", "text"),
        # Prometheus 2.42 and 3
        (
            (
                "application/openmetrics-text;version=1.0.0,"
                "application/openmetrics-text;version=0.0.1;q=0.75,"
                "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
            ),
            "openmetrics",
        ),
        (
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,"
                "application/openmetrics-text;version=0.0.1;q=0.4,"
                "text/plain;version=1.0.0;q=0.3,*/*;q=0.2"
            ),
            "openmetrics",
        ),
        (",;;=,q=", "text"),
        ("a/b," * exposition.ACCEPTED_MAX + "application/openmetrics-text", "text"),
    ],
)
def test_the_format_is_the_one_that_is_asked_for(accept: str, wanted: str) -> None:
    assert negotiate(accept) == wanted


def test_both_formats_have_the_same_samples(tmp_path: Path) -> None:
    metrics, files = write(tmp_path)
    metrics.requests_total.labels('a"b\\c\nd', "0").inc(2.5)
    metrics.flows_active.labels("tcp").set(3)
    for seconds in (0.0005, 1.0, 0.3, 100.0):
        metrics.connect_seconds.observe(seconds)
        metrics.loop_lag_seconds.labels("worker-0").observe(seconds)
    files.flush()
    text, openmetrics = values(tmp_path)
    assert text == openmetrics
    labels = (("command", 'a"b\\c\nd'), ("reply", "0"))
    assert text["socks_tunnel_requests_total", labels] == 2.5
    assert text["socks_tunnel_connect_seconds_bucket", (("le", "1.0"),)] == 3
    assert text["socks_tunnel_loop_lag_seconds_count", (("process", "worker-0"),)] == 4


def test_openmetrics_ends_with_eof_and_names_counters_without_total(tmp_path: Path) -> None:
    lines = render(tmp_path, "openmetrics").decode().splitlines()
    assert lines[-1] == "# EOF"
    assert "# TYPE socks_tunnel_flows counter" in lines
    assert not any("_created" in line for line in lines)
    assert "# TYPE socks_tunnel_flows_total counter" in render(tmp_path).decode().splitlines()


def test_known_label_values_are_there_from_the_start(tmp_path: Path) -> None:
    text, openmetrics = values(tmp_path)
    assert text == openmetrics
    for family in Metrics().families():
        for sample in family.zeros():
            labels = tuple(sorted(zip(sample.labels[::2], sample.labels[1::2], strict=True)))
            assert text[sample.name, labels] == 0
    assert text["socks_tunnel_policy_decisions_total", (("verdict", "denied"),)] == 0
    assert text["socks_tunnel_link_paths", (("family", "ipv6"), ("kind", "relay"))] == 0
    # What expires has no series unless there is such a thing: 0 would have expired long ago.
    assert not any(name == "socks_tunnel_tls_certificate_expires_seconds" for name, _ in text)


def test_what_has_not_changed_is_neither_read_nor_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    usual = multiprocess.read

    def counting(path: Path) -> object:
        read.append(path.name)
        return usual(path)

    monkeypatch.setattr(exposition, "read", counting)
    one, files = write(tmp_path)
    _, others = write(tmp_path, "worker-1")
    one.flows_total.labels("tcp").inc()
    files.flush()
    others.flush()
    renderer = Renderer(tmp_path, itertools.count(0.0, exposition.TEXT_MAX_AGE).__next__)
    first = renderer("text")
    kinds = ("counter", "gauge_livesum", "histogram")
    assert sorted(read) == [f"{kind}_worker-{n}.db" for kind in kinds for n in (0, 1)]
    read.clear()
    assert renderer("text") is first
    assert renderer("openmetrics") != first
    assert read == []
    one.flows_total.labels("tcp").inc()
    files.flush()
    assert b'socks_tunnel_flows_total{kind="tcp"} 2.0' in renderer("text")
    assert read == ["counter_worker-0.db"]
    assert b'socks_tunnel_flows_total{kind="tcp"} 2.0' in renderer("openmetrics")
    (tmp_path / "worker-1.damaged").touch()
    assert b"socks_tunnel_metrics_files_damaged 1.0" in renderer("text")


@pytest.mark.parametrize("wanted", ["text", "openmetrics"])
def test_what_is_kept_of_the_text_before_changes_nothing(
    tmp_path: Path, wanted: exposition.Format
) -> None:
    """Round by round, the text is what a renderer without a past writes."""
    one, files = write(tmp_path)
    two, others = write(tmp_path, "worker-1")
    kept = Renderer(tmp_path, itertools.count(0.0, exposition.TEXT_MAX_AGE).__next__)
    texts = set()
    for change in (
        lambda: one.flows_total.labels("tcp").inc(),
        lambda: two.flows_total.labels("tcp").inc(),
        lambda: one.connect_seconds.observe(0.2),
        lambda: two.connect_seconds.observe(5.0),
        lambda: one.worker_buffer_bytes.labels("worker-0").set(7),
        lambda: one.worker_buffer_bytes.labels("worker-0").set(0),
        lambda: two.route_flows_total.labels('a "route"\n', "o\\ffice").inc(),
        lambda: (tmp_path / "gauge_livesum_worker-1.db").unlink(),
        lambda: (tmp_path / "worker-1.damaged").touch(),
        lambda: (tmp_path / "worker-1.damaged").unlink(),
        lambda: (tmp_path / "counter_worker-1.db").write_bytes(b"damaged"),
    ):
        files.flush()
        others.flush()
        change()
        files.flush()
        text = kept(wanted)
        assert text == render(tmp_path, wanted)
        texts.add(text)
    assert len(texts) > 5


def test_the_text_is_what_the_library_writes_of_the_same_files(tmp_path: Path) -> None:
    """All that its collector finds in the directory is in the text, line for line."""
    metrics, files = write(tmp_path)
    other, others = write(tmp_path, "worker-1")
    for counted in (metrics, other):
        counted.bytes_total.labels("up", "tcp").inc(1e15)
        counted.connect_seconds.observe(0.2)
        counted.route_flows_total.labels('a "route"\n', "o\\ffice").inc(0.5)
        counted.up.set(1)
    files.flush()
    others.flush()
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))  # type: ignore[no-untyped-call]
    writers: dict[exposition.Format, Callable[[CollectorRegistry], bytes]] = {
        "text": generate_text,
        "openmetrics": generate_openmetrics,
    }
    for wanted, library in writers.items():
        theirs = set(library(registry).splitlines())
        ours = set(render(tmp_path, wanted).splitlines())
        assert b'socks_tunnel_bytes_total{direction="up",kind="tcp"} 2e+15' in theirs
        assert theirs <= ours


def test_a_text_is_good_for_half_a_second(tmp_path: Path) -> None:
    moments = iter([0.0, 0.0, 0.4, 0.4, 0.5, 0.6])
    renderer = Renderer(tmp_path, lambda: next(moments))
    metrics, files = write(tmp_path)
    first = renderer("text"), renderer("openmetrics")
    metrics.flows_total.labels("tcp").inc()
    files.flush()
    assert (renderer("text"), renderer("openmetrics")) == first
    assert b'socks_tunnel_flows_total{kind="tcp"} 1.0' in renderer("text")
    assert b'socks_tunnel_flows_total{kind="tcp"} 1.0' in renderer("openmetrics")
