"""How the exporter writes what all processes count: the Prometheus text format and OpenMetrics.

prometheus-client adds up the files of all processes (its multiprocess mode), and writes the text.
This module adds what the library lacks: a damaged file does not fail the scrape, and series with
known label values are there from the start.

Both formats have the same series under the same names. Where they differ: in OpenMetrics a
counter's name stands without `_total` in HELP and TYPE, and the text ends with `# EOF`. Neither
format has `_created`, because the files do not store when a series began.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from socks_tunnel.ops.meters import AnyFamily, Identity, identity_of
from socks_tunnel.ops.metrics import Metrics, added_up, as_dict
from socks_tunnel.ops.multiprocess import DamagedError, Sample, read, slot_of

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_log = logging.getLogger(__name__)

Format: TypeAlias = Literal["text", "openmetrics"]

CONTENT_TYPES: Final[dict[Format, str]] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}

DAMAGED: Final = "socks_tunnel_metrics_files_damaged"
"""The metric that the exporter itself adds."""

ACCEPTED_MAX: Final = 32
"""Number of media ranges of an Accept header that are examined."""


def negotiate(accept: str) -> Format:
    """Returns the format that an Accept header asks for (RFC 9110 section 12.5.1).

    OpenMetrics must be named. A client that accepts anything gets the text format.
    """
    openmetrics = plain = 0.0
    for media_range in accept.split(",")[:ACCEPTED_MAX]:
        kind, *rest = (part.strip().lower() for part in media_range.split(";"))
        parameters = dict(part.split("=", 1) for part in rest if "=" in part)
        weight = _weight(parameters.get("q", "1"))
        if kind == "application/openmetrics-text":
            if parameters.get("version", "1.0.0") in {"1.0.0", "0.0.1"}:
                openmetrics = max(openmetrics, weight)
        elif kind in {"text/plain", "text/*", "*/*"}:
            plain = max(plain, weight)
    return "openmetrics" if openmetrics > 0 and openmetrics >= plain else "text"


def _weight(text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        return 0.0
    return weight if 0 <= weight <= 1 else 0.0


class Reader:
    """Finds the files of all slots. A file that has not changed is not examined again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._known: dict[Path, tuple[Identity, bool]] = {}
        self.changed = True
        """Whether the last call of :meth:`files` found something else than the call before it."""

    def files(self) -> tuple[list[Path], int]:
        """Returns the files that can be used, and the number of damaged ones.

        A missing directory counts as empty, because the processes make it again. Raises
        :class:`OSError` if it cannot be read.
        """
        before, self._known = self._known, {}
        damaged = 0
        try:
            paths = sorted(self._directory.iterdir())
        except FileNotFoundError:
            paths = []
        for path in paths:
            if path.suffix == ".damaged":
                damaged += 1
            if path.suffix != ".db":
                continue
            try:
                identity = identity_of(path)
                known = before.get(path)
                if known is None or known[0] != identity:
                    known = identity, self._is_good(path)
            except FileNotFoundError:  # its process has ended, or the file was replaced
                continue
            self._known[path] = known
        self.changed = before != self._known
        good = [path for path, (_, is_good) in self._known.items() if is_good]
        return good, damaged + len(self._known) - len(good)

    def _is_good(self, path: Path) -> bool:
        """Returns whether a file can be read. The library raises at one that cannot."""
        try:
            read(path)
        except FileNotFoundError:
            raise
        except (DamagedError, OSError) as error:
            _log.debug("the metrics file %s is damaged: %s", path, error)
            return False
        return slot_of(path) is not None


def counted(directory: Path) -> Iterator[Sample]:
    """Yields the counters and gauges of all slots. Files that cannot be read are left out."""
    for path in sorted(directory.glob("*.db")):
        if path.name.startswith("histogram_"):
            continue
        try:
            yield from read(path)
        except (DamagedError, OSError) as error:  # the scrape counts the damaged file
            _log.debug("the metrics file %s is left out: %s", path, error)


TEXT_MAX_AGE: Final = 0.5
"""Seconds for which a text is used again. Each process writes its files at this interval."""


class Renderer:
    """Writes the sum over all slots of `directory`, by prometheus-client's multiprocess mode.

    Reads files: called in the exporter process, never on the supervisor's event loop. Used by one
    thread at a time. A text that is younger than :data:`TEXT_MAX_AGE` is returned again, and so is
    an older one if no file has changed. So a dozen collectors cost no more than one. After a
    change, only the metrics whose sums have changed are written again, because most series in a
    text count rare events. `now` is a monotonic clock in seconds.
    """

    def __init__(self, directory: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._made: dict[Format, float] = {}
        self._reader = Reader(directory)
        # Made with the first text, so that an instance that is never scraped does not pay for them.
        self._parts: list[_Part] = []
        self._texts: dict[Format, bytes] = {}
        self._damaged = 0

    def __call__(self, wanted: Format) -> bytes:
        """Returns the text. A damaged file is left out, and counted. Raises :class:`OSError`."""
        now = self._now()
        made = self._made.get(wanted)
        if made is not None and now - made < TEXT_MAX_AGE:
            return self._texts[wanted]
        files, damaged = self._reader.files()
        if self._reader.changed or damaged != self._damaged:
            self._texts = {}
            self._made = {}
            self._damaged = damaged
        if wanted not in self._texts:
            self._texts[wanted] = self._render(files, damaged, wanted)
        self._made[wanted] = now
        return self._texts[wanted]

    def _render(self, files: list[Path], damaged: int, wanted: Format) -> bytes:
        # Imported here, so that an instance that is never scraped does not pay for it.
        from prometheus_client.samples import Sample as Written  # noqa: PLC0415

        if not self._parts:
            self._parts = [_Part(family) for family in Metrics().families()]
        merged = _merged(files)
        texts = []
        for part in self._parts:
            metric = merged.get(part.name)
            samples = [] if metric is None else metric.samples
            if part.name == DAMAGED:  # the processes themselves count the files that they set aside
                samples = [Written(DAMAGED, {}, damaged)]
            texts.append(part.text(samples, wanted))
        if wanted == "openmetrics":
            texts.append(_EOF)
        return b"".join(texts)


_EOF: Final = b"# EOF\n"


class _Part:
    """The text of one metric, in both formats, for as long as its sums stay the same."""

    def __init__(self, family: AnyFamily) -> None:
        self.name = family.name
        self._help = family.help
        self._kind = family.kind
        self._zeros = [
            (name, as_dict(labels), value)
            for name, labels, value in added_up(family, family.zeros())
        ]
        self._samples: list[Any] | None = None
        self._texts: dict[Format, bytes] = {}

    def text(self, samples: list[Any], wanted: Format) -> bytes:
        """Returns the text for these sums, with the known label values.

        No sums give an empty text.
        """
        if samples != self._samples:
            self._samples = samples
            self._texts = {}
        if wanted not in self._texts:
            self._texts[wanted] = self._write(samples, wanted)
        return self._texts[wanted]

    def _write(self, samples: list[Any], wanted: Format) -> bytes:
        from prometheus_client.exposition import generate_latest  # noqa: PLC0415 - as above
        from prometheus_client.metrics_core import Metric  # noqa: PLC0415
        from prometheus_client.openmetrics import exposition  # noqa: PLC0415

        metric = Metric(self.name, self._help, self._kind)
        metric.samples = list(samples)
        present = {(sample.name, *sorted(sample.labels.items())) for sample in samples}
        for name, labels, zero in self._zeros:
            if (name, *sorted(labels.items())) not in present:
                metric.add_sample(name, labels, zero)
        if not metric.samples:
            return b""
        registry = _Collected([metric])
        # All names are plain. Unless told so, the library checks each of their characters.
        if wanted == "text":
            return generate_latest(registry, escaping=exposition.ALLOWUTF8)
        text: bytes = exposition.generate_latest(  # type: ignore[no-untyped-call]
            registry, escaping=exposition.ALLOWUTF8
        )
        return text.removesuffix(_EOF)


class _Collected:
    """An object that the library's output functions accept in place of a registry."""

    def __init__(self, metrics: "Iterable[Metric]") -> None:
        self._metrics = metrics

    def collect(self) -> "Iterable[Metric]":
        return self._metrics


def _merged(files: list[Path]) -> "dict[str, Metric]":
    """Returns the sums over all processes, by the name of the metric."""
    from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415 - as above

    while True:
        try:
            merged = MultiProcessCollector.merge(  # type: ignore[no-untyped-call]
                [str(path) for path in files], accumulate=True
            )
        except FileNotFoundError as error:  # the file was removed since it was listed
            files = [path for path in files if str(path) != error.filename]
        else:
            return {metric.name: metric for metric in merged}


def written(families: Iterable[AnyFamily], wanted: Format) -> bytes:
    """Returns the metrics of this process as text, for a process that writes no files."""
    from prometheus_client.samples import Sample as Written  # noqa: PLC0415 - as above

    texts = []
    for family in families:
        sums = added_up(family, family.samples())
        samples = [Written(name, as_dict(labels), value) for name, labels, value in sums]
        texts.append(_Part(family).text(samples, wanted))
    if wanted == "openmetrics":
        texts.append(_EOF)
    return b"".join(texts)


def render(directory: Path, wanted: Format = "text") -> bytes:
    """Returns the text once; see :class:`Renderer`."""
    return Renderer(directory)(wanted)
