"""Counters, gauges and histograms of one process, and the files that hold them for the exporter.

A process counts in its own memory, and a thread writes what has changed to three files twice a
second, one for each kind of metric. They are the files of prometheus-client's multiprocess mode
(:mod:`socks_tunnel.ops.multiprocess`). The library maps them into each process and writes each
increment; here, each write makes a new file and renames it. So no process has a file mapped that
another one could truncate under it, a reader never sees half a file, and a file that is damaged or
removed is whole again half a second later. Where there is no room for a file, counting goes on in
memory.

Slots are named after the place of a process ("supervisor", "worker-0"), not after its id: a worker
that is started again goes on counting where the one before it ended, so counters never fall. What
a process counted in its last half second before a SIGKILL is lost.
"""

import contextlib
import itertools
import logging
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Generic, Self, TypeAlias, TypeVar

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.multiprocess import (
    KINDS,
    DamagedError,
    Kind,
    Labels,
    Sample,
    entries,
    file_of,
    read,
    whole,
)

_log = logging.getLogger(__name__)
_bugs = BugLog()

FLUSH_PERIOD: Final = 0.5
"""Seconds between two writes of what has changed."""

MEASURE_EVERY: Final = 4
"""Number of writes for one measurement of the process. It differs each time, also when idle."""

SERIES_MAX: Final = 1000
"""Combinations of label values that one metric may have. Further ones are counted together as
`other`. No label may hold what a stranger chooses, so this bound is a second line of defence."""


class Value:
    """One series of a counter or a gauge. It is used on one thread, because a sum has no lock."""

    __slots__ = ("value",)

    def __init__(self, value: float = 0.0) -> None:
        self.value = value

    def inc(self, amount: float = 1.0) -> None:
        """Adds `amount`."""
        self.value += amount

    def dec(self, amount: float = 1.0) -> None:
        """Subtracts `amount` from a gauge."""
        self.value -= amount

    def set(self, value: float) -> None:
        """Sets the value of a gauge."""
        self.value = value


class Distribution:
    """One series of a histogram.

    `counts` has a number for each bucket, and one for larger values.
    """

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self.counts = [0.0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Counts one observation."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value


_S = TypeVar("_S", Value, Distribution)

Snapshot: TypeAlias = list[tuple[tuple[str, ...], tuple[float, ...]]]
"""The label values of each series of a metric, and its numbers."""


class Family(Generic[_S]):
    """A metric with its series, one for each combination of label values."""

    kind: Kind

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        known: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.name = name
        self.help = help_text
        self.label_names = tuple(labels)
        self.known = {} if known is None else dict(known)
        """The values of each label whose values are all known."""
        self.series: dict[tuple[str, ...], _S] = {}
        self.carried: dict[tuple[str, Labels], float] = {}
        """What an earlier process in this slot counted, by sample name and labels."""
        self._default: _S | None = None if labels else self.labels()

    def labels(self, *values: str) -> _S:
        """Returns the series with these label values. Keep it where it is counted often."""
        series = self.series.get(values)
        if series is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self.name} has the labels {self.label_names}, not {values}")
            if len(self.series) >= SERIES_MAX:
                values = ("other",) * len(values)
                if values in self.series:
                    return self.series[values]
            series = self.series[values] = self._new()
        return series

    def expected(self) -> Iterator[tuple[str, ...]]:
        """Yields the label values of the series that exist from the start, if all are known."""
        if len(self.known) == len(self.label_names):
            yield from itertools.product(*(self.known[name] for name in self.label_names))

    def zeros(self) -> Iterator[Sample]:
        """Yields zero samples for the series of :meth:`expected` that were not counted yet."""
        for values in self.expected():
            pairs = zip(self.label_names, values, strict=True)
            labels = tuple(text for pair in pairs for text in pair)
            for (name, more), value in self._named(self._figures(self._new())):
                yield Sample(self.name, name, labels + more, value)

    def _new(self) -> _S:
        raise NotImplementedError

    @property
    def alone(self) -> _S:
        """The one series of a metric without labels."""
        if self._default is None:
            raise ValueError(f"{self.name} needs values for {self.label_names}")
        return self._default

    def snapshot(self) -> Snapshot:
        """Returns the present numbers. While they are equal, so are the samples."""
        # The list is copied first, because the thread that counts may add a series meanwhile.
        return [(values, self._figures(series)) for values, series in list(self.series.items())]

    def samples(self, snapshot: Snapshot | None = None) -> Iterator[Sample]:
        """Yields what this process and its predecessors in the slot have counted."""
        left = dict(self.carried)
        for values, figures in self.snapshot() if snapshot is None else snapshot:
            pairs = zip(self.label_names, values, strict=True)
            labels = tuple(text for pair in pairs for text in pair)
            for (name, more), value in self._named(figures):
                all_labels = labels + more
                yield Sample(self.name, name, all_labels, value + left.pop((name, all_labels), 0.0))
        for (name, labels), value in left.items():
            yield Sample(self.name, name, labels, value)

    def _named(self, figures: tuple[float, ...]) -> Iterable[tuple[tuple[str, Labels], float]]:
        """Returns the numbers of a series, each with the name and the labels of its sample."""
        return zip(self._sample_names(), figures, strict=True)

    def _figures(self, series: _S) -> tuple[float, ...]:
        raise NotImplementedError

    def _sample_names(self) -> Sequence[tuple[str, Labels]]:
        raise NotImplementedError


class Counter(Family[Value]):
    """A number that only grows. Its samples have `_total` at the end of their name."""

    kind: Kind = "counter"

    def __init__(
        self,
        name: str,
        help_text: str,
        labels: Sequence[str] = (),
        known: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        super().__init__(name.removesuffix("_total"), help_text, labels, known)

    def _new(self) -> Value:
        return Value()

    def _figures(self, series: Value) -> tuple[float, ...]:
        return (series.value,)

    def _sample_names(self) -> Sequence[tuple[str, Labels]]:
        return ((f"{self.name}_total", ()),)

    def inc(self, amount: float = 1.0) -> None:
        """Adds to the series without labels."""
        self.alone.inc(amount)

    @property
    def value(self) -> float:
        """The series without labels."""
        return self.alone.value


class Gauge(Family[Value]):
    """A number that goes up and down, and ends with its process."""

    kind: Kind = "gauge"

    def _new(self) -> Value:
        return Value()

    def _figures(self, series: Value) -> tuple[float, ...]:
        return (series.value,)

    def _sample_names(self) -> Sequence[tuple[str, Labels]]:
        return ((self.name, ()),)

    def set(self, value: float) -> None:
        """Sets the series without labels."""
        self.alone.set(value)

    def inc(self, amount: float = 1.0) -> None:
        """Adds to the series without labels."""
        self.alone.inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Subtracts from the series without labels."""
        self.alone.dec(amount)

    @property
    def value(self) -> float:
        """The series without labels."""
        return self.alone.value


class Histogram(Family[Distribution]):
    """How often a value was at most so large. Files have separate buckets, not running sums."""

    kind: Kind = "histogram"

    def __init__(
        self, name: str, help_text: str, buckets: Sequence[float], labels: Sequence[str] = ()
    ) -> None:
        self._buckets = tuple(buckets)
        # Written as in OpenMetrics, "1.0", so that both formats have the same series.
        bounds = [*(repr(float(bound)) for bound in buckets), "+Inf"]
        self._names: Sequence[tuple[str, Labels]] = (
            *((f"{name}_bucket", ("le", bound)) for bound in bounds),
            (f"{name}_sum", ()),
        )
        super().__init__(name, help_text, labels)

    def _new(self) -> Distribution:
        return Distribution(self._buckets)

    def _figures(self, series: Distribution) -> tuple[float, ...]:
        return (*series.counts, series.sum)

    def _sample_names(self) -> Sequence[tuple[str, Labels]]:
        return self._names

    def observe(self, value: float) -> None:
        """Counts one observation in the series without labels."""
        self.alone.observe(value)


AnyFamily: TypeAlias = Counter | Gauge | Histogram


# --- files ------------------------------------------------------------------------------------

Identity: TypeAlias = tuple[int, int, int]
"""Inode, time of change and size of a file. While they are equal, so is the content."""


class Files:
    """Writes the samples of some families to the three files of a slot.

    `problem` is why the last write failed, or None. `damaged` counts the files that were found
    damaged and set aside. Made before the families count; :meth:`add` each of them. `measure`, if
    it is set, is called before every fourth write, in the thread that writes.
    """

    def __init__(self, directory: Path, slot: str) -> None:
        if not slot or not all(c.isalnum() or c == "-" for c in slot):
            raise ValueError(f"{slot!r} cannot name a metrics slot")
        self.directory = directory
        self.slot = slot
        self.problem: str | None = None
        self.damaged = 0
        self.measure: Callable[[], None] | None = None
        self._flushes = 0
        self._families: dict[Kind, list[AnyFamily]] = {kind: [] for kind in KINDS}
        self._parts: dict[str, tuple[Snapshot, bytes]] = {}
        """The numbers that a family had, and its part of the file, which is good while they are
        equal."""
        self._written: dict[Path, tuple[bytes, Identity]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._carried = self._read_predecessor()
        discard(file_of(directory, "gauge", slot))

    def _read_predecessor(self) -> dict[str, dict[tuple[str, Labels], float]]:
        carried: dict[str, dict[tuple[str, Labels], float]] = {}
        for kind in ("counter", "histogram"):
            for sample in self._read_file(file_of(self.directory, kind, self.slot)):
                carried.setdefault(sample.metric, {})[sample.name, sample.labels] = sample.value
        return carried

    def _read_file(self, path: Path) -> list[Sample]:
        try:
            return read(path)
        except FileNotFoundError:
            return []
        except OSError as error:
            reason = error.strerror or str(error)
            _log.warning("the metrics file %s cannot be read (%s): set aside", path, reason)
        except DamagedError as error:
            _log.warning("the metrics file %s is damaged (%s): set aside", path, error)
        self.damaged += 1
        _set_aside(path)
        return []

    def add(self, family: AnyFamily) -> None:
        """Includes a family in the files. It goes on from the numbers of an earlier process."""
        if not isinstance(family, Gauge):
            family.carried = self._carried.get(family.name, {})
        self._families[family.kind].append(family)

    def start(self) -> Self:
        """Begins to write at intervals, in a daemon thread.

        If no thread can be started, the owner has to call :meth:`flush`.
        """
        self._thread = threading.Thread(target=self._write_all, name="metrics", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            _log.warning("metrics are not written: %s", error)
        return self

    def stop(self) -> None:
        """Writes for the last time."""
        self._stop.set()
        self.flush()

    def _write_all(self) -> None:
        while not self._stop.wait(FLUSH_PERIOD):
            with _bugs.going_on(_log, "metrics are not written"):
                self.flush()

    def flush(self) -> None:
        """Writes what has changed. A failure is logged when it begins and when it is over."""
        with self._lock:
            problem = None
            if self.measure is not None and self._flushes % MEASURE_EVERY == 0:
                with _bugs.going_on(_log, "what this process uses is not measured"):
                    self.measure()
            self._flushes += 1
            for kind in KINDS:
                path = file_of(self.directory, kind, self.slot)
                parts = [
                    self._part(family)
                    for family in self._families[kind]
                    if family.series or family.carried
                ]
                try:
                    self._replace(path, whole(parts))
                except OSError as error:
                    problem = error.strerror or str(error)
            if problem != self.problem:
                self.problem = problem
                if problem is None:
                    _log.info("metrics are written to %s again", self.directory)
                else:
                    _log.warning(
                        "metrics cannot be written to %s: %s; they are kept in memory until then",
                        self.directory,
                        problem,
                    )

    def _part(self, family: AnyFamily) -> bytes:
        """Returns a family's part of its file. It is cached, because most have not changed."""
        snapshot = family.snapshot()
        known = self._parts.get(family.name)
        if known is not None and known[0] == snapshot:
            return known[1]
        part = entries((family.help, sample) for sample in family.samples(snapshot))
        self._parts[family.name] = snapshot, part
        return part

    def _replace(self, path: Path, content: bytes) -> None:
        before = self._written.get(path)
        if before is not None and before[0] == content:
            with contextlib.suppress(OSError):
                if identity_of(path) == before[1]:
                    return  # the file is as it was written
        fresh = path.with_suffix(".new")
        try:
            try:
                fresh.write_bytes(content)
            except FileNotFoundError:  # a cleaner has removed the directory
                self.directory.mkdir(mode=0o750, parents=True, exist_ok=True)
                fresh.write_bytes(content)
            try:
                fresh.replace(path)
            except IsADirectoryError:  # whoever made the directory again, the metrics go on
                discard(path)
                fresh.replace(path)
            self._written[path] = content, identity_of(path)
        except OSError:
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise


def discard(path: Path) -> None:
    """Removes a metrics file, if there is one. A file that cannot be removed is set aside.

    Something else in its place, such as a directory, must not stop the process.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("%s cannot be removed (%s): set aside", path, error.strerror or error)
        _set_aside(path)


def _set_aside(path: Path) -> None:
    # One name for each file, so that such files do not pile up.
    aside = path.with_suffix(".damaged")
    with contextlib.suppress(OSError):
        path.replace(aside)


def identity_of(path: Path) -> Identity:
    """Returns a value that changes when the file is written. Raises :class:`OSError`."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns, status.st_size
