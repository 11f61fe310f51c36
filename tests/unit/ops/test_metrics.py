"""Metrics of several processes: sums, restarts, and files that do not pile up.

What needs the multiprocess mode runs in processes of its own, because that mode is a property of
the process, and because a worker that is killed must be a real one.
"""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import Counter, Gauge, Histogram, values
from prometheus_client.parser import text_string_to_metric_families

from socks_tunnel.ops.metrics import (
    Metrics,
    configure,
    prepare_directory,
    render,
    slot_died,
)

WORKER = """
import sys
from pathlib import Path
from socks_tunnel.ops.metrics import Metrics, configure

configure(Path(sys.argv[1]), sys.argv[2])
metrics = Metrics()
metrics.flows_active.labels("tcp").inc(3)
metrics.flows_total.labels("tcp").inc(5)
metrics.connect_seconds.observe(0.2)
print("ready", flush=True)
sys.stdin.read()
"""


def start(directory: Path, slot: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, directory, slot],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def stop(process: subprocess.Popen[str], with_signal: signal.Signals | None = None) -> None:
    with process:  # closes its standard input, which ends it, and waits
        if with_signal is not None:
            process.send_signal(with_signal)


def samples(directory: Path) -> dict[str, float]:
    """Give what is exported, by the sample's name and labels."""
    found = {}
    for family in text_string_to_metric_families(render(directory).decode()):
        for sample in family.samples:
            labels = ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_processes_are_added_up(tmp_path: Path) -> None:
    workers = [start(tmp_path, f"worker-{n}") for n in range(2)]
    found = samples(tmp_path)
    for worker in workers:
        stop(worker)
    assert found["socks_tunnel_flows_active{kind=tcp}"] == 6
    assert found["socks_tunnel_flows_total{kind=tcp}"] == 10
    assert found["socks_tunnel_connect_seconds_count{}"] == 2
    assert found["socks_tunnel_connect_seconds_sum{}"] == pytest.approx(0.4)


def test_a_killed_worker_leaves_its_counters_and_no_gauges(tmp_path: Path) -> None:
    stays, killed = start(tmp_path, "worker-0"), start(tmp_path, "worker-1")
    stop(killed, signal.SIGKILL)
    slot_died(tmp_path, "worker-1")

    found = samples(tmp_path)
    assert found["socks_tunnel_flows_active{kind=tcp}"] == 3
    assert found["socks_tunnel_flows_total{kind=tcp}"] == 10

    restarted = start(tmp_path, "worker-1")
    found = samples(tmp_path)
    stop(restarted)
    stop(stays)
    assert found["socks_tunnel_flows_active{kind=tcp}"] == 6
    assert found["socks_tunnel_flows_total{kind=tcp}"] == 15
    assert found["socks_tunnel_connect_seconds_count{}"] == 3


def test_a_restarted_worker_starts_without_its_predecessors_gauges(tmp_path: Path) -> None:
    stop(start(tmp_path, "worker-0"), signal.SIGKILL)  # and nobody called slot_died
    worker = start(tmp_path, "worker-0")
    found = samples(tmp_path)
    stop(worker)
    assert found["socks_tunnel_flows_active{kind=tcp}"] == 3


MANY_RESTARTS = """
import sys
from pathlib import Path
from prometheus_client.values import close_all_multiprocess_files
from socks_tunnel.ops.metrics import Metrics, configure, slot_died

directory = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    configure(directory, "worker-0")
    metrics = Metrics()
    metrics.requests_total.labels("connect", "0").inc()
    metrics.flows_active.labels("tcp").inc()
    close_all_multiprocess_files()
    slot_died(directory, "worker-0")
"""


def test_two_hundred_restarts_leave_as_many_files_as_one(tmp_path: Path) -> None:
    sizes = []
    for restarts in (1, 199):
        subprocess.run([sys.executable, "-c", MANY_RESTARTS, tmp_path, str(restarts)], check=True)
        sizes.append({file.name: file.stat().st_size for file in tmp_path.iterdir()})
    assert sizes[0] == sizes[1]
    assert samples(tmp_path)["socks_tunnel_requests_total{command=connect,reply=0}"] == 200


def test_rendering_survives_files_that_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(start(tmp_path, "worker-0"))
    (tmp_path / "counter_worker-1.db").touch()  # its process was killed before it wrote anything
    gone = tmp_path / "counter_worker-2.db"
    glob = Path.glob

    def glob_sees_one_too_many(self: Path, pattern: str) -> list[Path]:
        found = list(glob(self, pattern))
        if not seen:
            seen.append(gone)
            gone.write_bytes(b"\0" * 100)
            found.append(gone)
            gone.unlink()
            return found
        return found

    seen: list[Path] = []
    monkeypatch.setattr(Path, "glob", glob_sees_one_too_many)
    assert samples(tmp_path)["socks_tunnel_flows_total{kind=tcp}"] == 5
    assert seen == [gone]


def test_rendering_gives_up_on_a_directory_that_never_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "glob", lambda *_: [tmp_path / "counter_never-there.db"])
    with pytest.raises(FileNotFoundError):
        render(tmp_path)


def test_an_empty_directory_is_no_error(tmp_path: Path) -> None:
    assert render(tmp_path) == b""


def test_a_new_run_starts_with_an_empty_directory(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "metrics"
    prepare_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o750
    (directory / "gauge_livesum_worker-7.db").touch()
    (directory / "other").touch()
    prepare_directory(directory)
    assert [file.name for file in directory.iterdir()] == ["other"]


@pytest.mark.parametrize("identity", ["", "worker_0", "../worker"])
def test_names_that_cannot_be_slots(tmp_path: Path, identity: str) -> None:
    with pytest.raises(ValueError, match="cannot name a metrics slot"):
        configure(tmp_path, identity)
    assert "PROMETHEUS_MULTIPROC_DIR" not in os.environ


# --- in one process ---------------------------------------------------------------------------


@pytest.fixture
def metrics() -> Metrics:
    assert not values.ValueClass._multiprocess, "some test configured this very process"
    return Metrics()


def test_two_sets_do_not_collide(metrics: Metrics) -> None:
    metrics.worker_restarts_total.inc()
    assert Metrics().worker_restarts_total._value.get() == 0


def test_names_and_labels(metrics: Metrics) -> None:
    """No label is one that can hold a destination, a user or a peer."""
    harmless = {"direction", "kind", "reason", "command", "reply", "verdict", "state", "outcome"}
    harmless |= {"where", "version", "python", "aiortc"}
    for name, metric in vars(metrics).items():
        assert isinstance(metric, Counter | Gauge | Histogram)
        assert metric._name.startswith("socks_tunnel_")
        assert set(metric._labelnames) <= harmless, name
        if isinstance(metric, Gauge):
            assert metric._multiprocess_mode.startswith("live"), name


def test_build_info(metrics: Metrics) -> None:
    metrics.set_build_info()
    [family] = metrics.build_info.collect()
    [sample] = family.samples
    assert sample.value == 1
    assert sample.labels["version"].count(".") >= 1
    assert sample.labels["aiortc"].startswith("1.")
    assert metrics.up._value.get() == 1
