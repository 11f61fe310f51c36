"""What the kernel says of a process."""

import os
import resource
from pathlib import Path

import pytest

from socks_tunnel.ops import process_figures as module
from socks_tunnel.ops.logging import dropped_lines
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.process_figures import figures_of, process_figures


def test_figures_are_those_of_the_process() -> None:
    before = process_figures()
    read, write = os.pipe()
    after = process_figures()
    os.close(read)
    os.close(write)
    assert after.open_descriptors == before.open_descriptors + 2
    assert after.descriptor_limit == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    assert after.cpu_seconds >= before.cpu_seconds > 0
    assert 1 << 20 < after.resident_bytes < 1 << 40


def test_an_older_kernel_has_its_descriptors_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Old(type(module._DESCRIPTORS)):  # type: ignore[misc]
        def stat(self, **options: object) -> os.stat_result:
            return os.stat_result((0o40500, 0, 0, 1, 0, 0, 0, 0, 0, 0))

    new = process_figures().open_descriptors
    monkeypatch.setattr(module, "_DESCRIPTORS", Old("/proc/self/fd"))
    assert process_figures().open_descriptors == new
    del tmp_path


NOBODY = 0x7FFF_FFFF
"""More than any pid (proc_sys_kernel(5), pid_max)."""


def test_figures_of_another_process_are_what_it_says_itself() -> None:
    own, seen = process_figures(), figures_of(os.getpid())
    assert seen.descriptor_limit == own.descriptor_limit
    assert abs(seen.open_descriptors - own.open_descriptors) <= 1  # the one that lists
    assert abs(seen.cpu_seconds - own.cpu_seconds) < 1
    assert 0.5 < seen.resident_bytes / own.resident_bytes < 2


def test_children_that_count_nothing_are_asked_for() -> None:
    metrics = Metrics()
    metrics.others["nursery"] = os.getpid
    metrics.others["none"] = lambda: None
    metrics.others["ended"] = lambda: NOBODY
    metrics.measure()
    assert metrics.process_open_fds.labels("nursery").value > 2
    assert metrics.process_cpu_seconds_total.labels("nursery").value > 0
    assert set(metrics.process_open_fds.series) == {(metrics.process,), ("nursery",)}


def test_a_child_that_does_not_run_any_more_holds_nothing() -> None:
    metrics = Metrics()
    pids = iter([os.getpid(), None])
    metrics.others["nursery"] = lambda: next(pids)
    metrics.measure()
    used = metrics.process_cpu_seconds_total.labels("nursery").value
    metrics.measure()
    assert metrics.process_resident_bytes.labels("nursery").value == 0
    assert metrics.process_open_fds.labels("nursery").value == 0
    assert metrics.process_cpu_seconds_total.labels("nursery").value == used


def test_lines_that_the_log_has_dropped_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    monkeypatch.setitem(dropped_lines, "audit-file", 7)
    metrics.measure()
    monkeypatch.setitem(dropped_lines, "audit-file", 9)
    metrics.measure()
    assert metrics.log_dropped_total.labels("audit-file").value == 9


def test_they_are_labelled_with_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics()
    metrics.process = "worker-3"
    metrics.measure()
    assert metrics.process_open_fds.labels("worker-3").value > 2
    assert metrics.process_cpu_seconds_total.labels("worker-3").value > 0

    def gone() -> None:
        raise FileNotFoundError(2, "No such file", "/proc/self/statm")

    monkeypatch.setattr("socks_tunnel.ops.metrics.process_figures", gone)
    metrics.measure()  # no /proc: no figures, and nothing else
