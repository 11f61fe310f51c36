"""Metrics of several processes: sums, restarts, and files that do not pile up.

What several processes count is counted by real ones, because a worker that is killed must be one.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from socks_tunnel.ops.exposition import render
from socks_tunnel.ops.meters import Counter, Files, Gauge, Histogram
from socks_tunnel.ops.metrics import (
    Metrics,
    configure,
    prepare_directory,
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
metrics.flush()
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


def wait_for(probe: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not probe():
        assert time.monotonic() < end
        time.sleep(0.02)


def samples(directory: Path) -> dict[str, float]:
    """Returns what is exported, by the sample's name and labels."""
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
from socks_tunnel.ops.metrics import Metrics, configure, slot_died

directory = Path(sys.argv[1])
for _ in range(int(sys.argv[2])):
    configure(directory, "worker-0")
    metrics = Metrics()
    metrics.requests_total.labels("connect", "0").inc()
    metrics.flows_active.labels("tcp").inc()
    metrics.files.stop()
    slot_died(directory, "worker-0")
"""


def test_two_hundred_restarts_leave_as_many_files_as_one(tmp_path: Path) -> None:
    sizes = []
    for restarts in (1, 199):
        subprocess.run([sys.executable, "-c", MANY_RESTARTS, tmp_path, str(restarts)], check=True)
        sizes.append({file.name: file.stat().st_size for file in tmp_path.iterdir()})
    assert sizes[0] == sizes[1]
    assert samples(tmp_path)["socks_tunnel_requests_total{command=connect,reply=0}"] == 200


def test_damaged_files_are_left_out_and_counted(tmp_path: Path) -> None:
    stop(start(tmp_path, "worker-0"))
    (tmp_path / "counter_worker-1.db").touch()  # empty
    (tmp_path / "counter_worker-2.db").write_bytes(b"\xff\xff\0\0\0\0\0\0garbage")
    (tmp_path / "counter_worker-3.db").write_bytes(
        (tmp_path / "counter_worker-0.db").read_bytes()[:-5]
    )
    (tmp_path / "counter_worker-4.db").mkdir()
    (tmp_path / "counter_worker-5.db").symlink_to(tmp_path / "nowhere")  # as one that has just gone
    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / "other.db").write_bytes((tmp_path / "counter_worker-0.db").read_bytes())
    found = samples(tmp_path)
    assert found["socks_tunnel_flows_total{kind=tcp}"] == 5
    assert found["socks_tunnel_metrics_files_damaged{}"] == 5


def test_a_directory_that_a_cleaner_removed_is_made_again(tmp_path: Path) -> None:
    directory = tmp_path / "metrics"
    directory.mkdir()
    process = start(directory, "worker-0")
    process.send_signal(signal.SIGSTOP)  # it looks after its files once in a while
    os.waitid(os.P_PID, process.pid, os.WSTOPPED)
    shutil.rmtree(directory)
    assert not any(samples(directory).values())
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: samples(directory).get("socks_tunnel_flows_total{kind=tcp}") == 5)
    stop(process)


@pytest.mark.parametrize("damage", ["overwrite", "truncate", "remove"])
def test_a_file_that_somebody_damages_is_whole_again(tmp_path: Path, damage: str) -> None:
    process = start(tmp_path, "worker-0")
    path = tmp_path / "counter_worker-0.db"
    match damage:
        case "overwrite":
            with path.open("r+b") as file:
                file.write(b"\xff\xff\0\0garbage")
        case "truncate":
            os.truncate(path, 0)
        case _:
            path.unlink()
    wait_for(lambda: samples(tmp_path).get("socks_tunnel_flows_total{kind=tcp}") == 5)
    assert process.poll() is None
    stop(process)


def test_an_empty_directory_is_no_error(tmp_path: Path) -> None:
    found = samples(tmp_path)
    assert found["socks_tunnel_flows_total{kind=tcp}"] == 0
    assert not any(found.values())


def test_a_new_run_starts_with_an_empty_directory(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "metrics"
    prepare_directory(directory)
    assert directory.stat().st_mode & 0o777 == 0o750
    for name in (
        "gauge_livesum_worker-7.db",
        "counter_worker-7.db",
        "worker-7.new",
        "worker-7.damaged",
        "other",
    ):
        (directory / name).touch()
    prepare_directory(directory)
    assert [file.name for file in directory.iterdir()] == ["other"]


@pytest.mark.parametrize("identity", ["", "worker_0", "../worker", "a.b"])
def test_names_that_cannot_be_slots(tmp_path: Path, identity: str) -> None:
    with pytest.raises(ValueError, match="cannot name a metrics slot"):
        configure(tmp_path, identity)
    assert list(tmp_path.iterdir()) == []


# --- in one process ---------------------------------------------------------------------------


@pytest.fixture
def metrics() -> Metrics:
    made = Metrics()
    assert made.files is None, "some test configured this very process"
    return made


def test_two_sets_do_not_collide(metrics: Metrics) -> None:
    metrics.worker_restarts_total.inc()
    assert Metrics().worker_restarts_total.value == 0


def test_names_and_labels(metrics: Metrics) -> None:
    """No label is one that can hold a destination, a user or a client.

    A peer is named beside a route alone: the operator has written both.
    """
    harmless = {"direction", "kind", "reason", "command", "reply", "verdict", "state", "outcome"}
    harmless |= {"where", "version", "python", "aiortc", "result", "why"}
    harmless |= {"cause", "family", "listener", "process", "role"}
    for name, metric in vars(metrics).items():
        if name in {"files", "process", "others"}:
            continue
        assert isinstance(metric, Counter | Gauge | Histogram)
        assert metric.name.startswith("socks_tunnel_")
        of_routes = {"route", "peer"} if "route" in metric.label_names else set()
        assert set(metric.label_names) <= harmless | of_routes, name


def test_build_info(metrics: Metrics) -> None:
    metrics.set_build_info("gateway", "1.16.0")
    [sample] = metrics.build_info.samples()
    labels = dict(zip(sample.labels[::2], sample.labels[1::2], strict=True))
    assert sample.value == 1
    assert labels["role"] == "gateway"
    assert labels["version"].count(".") >= 1
    assert labels["aiortc"] == "1.16.0"
    assert metrics.up.value == 1


def test_what_is_rendered_is_what_prometheus_client_would_say(tmp_path: Path) -> None:
    """The library parses our text, and its own registry holds the same samples."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.requests_total.labels('a"b\\c\n', "0").inc(2.5)
    for seconds in (0.0005, 0.001, 0.3, 100.0):
        metrics.connect_seconds.observe(seconds)
    files = Files(tmp_path, "worker-0")
    for family in metrics.families():
        files.add(family)
    files.flush()
    files.stop()
    ours = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(render(tmp_path).decode())
        for sample in family.samples
        if sample.value
    }
    theirs = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.value  # ours also has the series of all label values that are known
    }
    assert ours == theirs
    assert ours["socks_tunnel_connect_seconds_bucket", (("le", "0.001"),)] == 2
    assert ours["socks_tunnel_connect_seconds_count", ()] == 4
