"""Families, series and files of metrics, each bound passed by one."""

import errno
import logging
import math
import os
import struct
import threading
from pathlib import Path

import pytest

from socks_tunnel.ops import meters, metrics
from socks_tunnel.ops.exposition import Reader
from socks_tunnel.ops.meters import (
    Counter,
    Files,
    Gauge,
    Histogram,
)
from socks_tunnel.ops.multiprocess import DamagedError, Kind, Sample, encode, file_of, read


def test_series_are_counted_by_their_labels() -> None:
    counter = Counter("x_total", "An x", ("a", "b"))
    counter.labels("1", "2").inc()
    counter.labels("1", "2").inc(2)
    counter.labels("1", "3").inc(0.5)
    assert list(counter.samples()) == [
        Sample("x", "x_total", ("a", "1", "b", "2"), 3.0),
        Sample("x", "x_total", ("a", "1", "b", "3"), 0.5),
    ]
    with pytest.raises(ValueError, match="has the labels"):
        counter.labels("1")
    with pytest.raises(ValueError, match="needs values"):
        counter.inc()


def test_a_gauge_goes_both_ways() -> None:
    gauge = Gauge("g", "A g")
    gauge.set(5)
    gauge.inc()
    gauge.dec(2)
    assert gauge.value == 4
    gauge = Gauge("g", "A g", ("a",))
    gauge.labels("x").dec()
    assert [sample.value for sample in gauge.samples()] == [-1]


def test_an_observation_is_in_the_first_bucket_that_holds_it() -> None:
    histogram = Histogram("h", "An h", (1, 2.5))
    for value in (0, 1, 1.1, 2.5, 3):
        histogram.observe(value)
    assert [(s.name, s.labels, s.value) for s in histogram.samples()] == [
        ("h_bucket", ("le", "1.0"), 2),
        ("h_bucket", ("le", "2.5"), 2),
        ("h_bucket", ("le", "+Inf"), 1),
        ("h_sum", (), 7.6),
    ]


def test_one_metric_has_so_many_series() -> None:
    counter = Counter("x", "An x", ("a",))
    for number in range(meters.SERIES_MAX + 50):
        counter.labels(str(number)).inc()
    assert len(counter.series) == meters.SERIES_MAX + 1
    assert counter.labels("one more").value == 50


def counting(directory: Path) -> tuple[Files, Counter, Gauge]:
    files = Files(directory, "worker-0")
    counter, gauge = Counter("c", "A c", ("a",)), Gauge("g", "A g")
    files.add(counter)
    files.add(gauge)
    return files, counter, gauge


def problem_of(files: Files) -> str | None:
    return files.problem


def test_a_slot_goes_on_where_its_predecessor_ended(tmp_path: Path) -> None:
    files, counter, gauge = counting(tmp_path)
    counter.labels("x").inc(2)
    counter.labels("y").inc(3)
    gauge.set(7)
    files.flush()
    files, counter, gauge = counting(tmp_path)
    assert not file_of(tmp_path, "gauge", "worker-0").exists()
    counter.labels("x").inc(10)
    files.flush()
    values = {s.labels: s.value for s in read(file_of(tmp_path, "counter", "worker-0"))}
    assert values == {("a", "x"): 12, ("a", "y"): 3}
    assert [s.value for s in read(file_of(tmp_path, "gauge", "worker-0"))] == [0]


def entries(key: bytes = b"", *, value: float = 1.0, used: int | None = None) -> bytes:
    """A file with one entry, or with less."""
    entry = b""
    if key:
        padded = key + b" " * (8 - (len(key) + 4) % 8)
        entry = struct.pack(f"i{len(padded)}sdd", len(key), padded, value, 0.0)
    return struct.pack("ii", 8 + len(entry) if used is None else used, 0) + entry + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 100,
        entries(used=9),
        entries(used=7),
        entries(b"[]"),
        entries(b"no json"),
        entries(b'["c", "c_total", {}, "A c", 1]'),
        entries(b'["c", "c_total", ["a"], "A c"]'),
        entries(b'["c", "c_total", {"a": 1}, "A c"]'),
        entries(b'["c", "c_total", {}, "A c"]', value=math.nan),
        entries(b"", used=32),
        encode([("A c", Sample("c", "c_total", (), 1.0))])[:-1],
    ],
    ids=range(12),
)
def test_a_damaged_file_is_set_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    file_of(tmp_path, "counter", "worker-0").write_bytes(content)
    with pytest.raises(DamagedError):
        read(file_of(tmp_path, "counter", "worker-0"))
    files, counter, _ = counting(tmp_path)
    assert files.damaged == 1
    assert "is damaged" in caplog.text
    assert (tmp_path / "counter_worker-0.damaged").read_bytes() == content
    counter.labels("x").inc()
    files.flush()
    assert [s.value for s in read(file_of(tmp_path, "counter", "worker-0"))] == [1]
    assert Reader(tmp_path).files()[1] == 1


@pytest.mark.parametrize("kind", ["counter", "histogram", "gauge"])
@pytest.mark.parametrize("what", ["directory", "full directory", "FIFO", "link to a device"])
def test_whatever_stands_in_the_place_of_a_file_stops_nobody(
    tmp_path: Path, kind: Kind, what: str
) -> None:
    path = file_of(tmp_path, kind, "worker-0")
    if what == "FIFO":
        os.mkfifo(path)
    elif what == "link to a device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
        if what == "full directory":
            (path / "something").touch()
    for _ in range(2):  # also where something has been set aside before
        files = Files(tmp_path, "worker-0")
        counter = Counter("x_total", "An x")
        files.add(counter)
        counter.inc()
        files.flush()
        assert files.problem is None
    metrics.slot_died(tmp_path, "worker-0")
    assert {sample.value for sample in read(file_of(tmp_path, "counter", "worker-0"))} == {2}


def test_a_directory_that_comes_later_is_set_aside(tmp_path: Path) -> None:
    files = Files(tmp_path, "worker-0")
    counter = Counter("x_total", "An x")
    files.add(counter)
    counter.inc()
    file_of(tmp_path, "counter", "worker-0").mkdir()
    files.flush()
    assert files.problem is None
    assert [sample.value for sample in read(file_of(tmp_path, "counter", "worker-0"))] == [1]


def test_a_slot_that_died_has_no_gauges_whatever_they_are(tmp_path: Path) -> None:
    path = file_of(tmp_path, "gauge", "worker-0")
    path.mkdir()
    metrics.slot_died(tmp_path, "worker-0")
    assert not path.exists()


def test_without_room_counting_goes_on_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files, counter, _ = counting(tmp_path)
    counter.labels("x").inc()
    files.flush()

    def full(path: Path, _: bytes) -> None:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        for _ in range(5):
            counter.labels("x").inc()
            files.flush()
        assert problem_of(files) == "No space left on device"
    assert [s.value for s in read(file_of(tmp_path, "counter", "worker-0"))] == [1], (
        "the last whole file"
    )
    assert not list(tmp_path.glob("*.new"))
    files.flush()
    assert problem_of(files) is None
    assert [s.value for s in read(file_of(tmp_path, "counter", "worker-0"))] == [6]
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    files, counter, _ = counting(tmp_path)
    counter.labels("x").inc()
    files.flush()
    before = file_of(tmp_path, "counter", "worker-0").stat()
    files.flush()
    after = file_of(tmp_path, "counter", "worker-0").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    counter.labels("x").inc()
    files.flush()
    assert file_of(tmp_path, "counter", "worker-0").stat().st_ino != before.st_ino


def test_no_thread_is_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    files, _, _ = counting(tmp_path)
    files.start()
    assert "metrics are not written: can't start new thread" in caplog.text
    files.stop()
    assert file_of(tmp_path, "counter", "worker-0").exists()


def test_other_series_with_the_same_numbers_are_written(tmp_path: Path) -> None:
    files = Files(tmp_path, "worker-0")
    gauge = Gauge("g", "A g", ("a",))
    files.add(gauge)
    gauge.labels("x").set(5)
    files.flush()
    gauge.series.clear()
    gauge.labels("y").set(5)
    files.flush()
    assert [s.labels for s in read(file_of(tmp_path, "gauge", "worker-0"))] == [("a", "y")]


def test_what_a_process_uses_is_measured_at_every_fourth_write(tmp_path: Path) -> None:
    files, counter, _ = counting(tmp_path)
    files.measure = counter.labels("measured").inc
    for _ in range(2 * meters.MEASURE_EVERY):
        files.flush()
    assert counter.labels("measured").value == 2


class Stopping:
    """Says that it is time to stop when it is asked for the third time."""

    def __init__(self) -> None:
        self._answers = [True, False, False]

    def wait(self, _seconds: float) -> bool:
        return self._answers.pop()


def test_what_cannot_be_measured_costs_no_metric(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, counter, _ = counting(tmp_path)

    def fails() -> None:
        raise ZeroDivisionError

    files.measure = fails
    counter.labels("x").inc()
    files.flush()
    assert read(file_of(tmp_path, "counter", "worker-0"))
    flushes = []

    def fails_too() -> None:
        flushes.append(1)
        raise ZeroDivisionError

    monkeypatch.setattr(files, "_stop", Stopping())
    monkeypatch.setattr(files, "flush", fails_too)
    files._write_all()
    assert len(flushes) == 2
