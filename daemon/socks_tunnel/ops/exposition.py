"""How the exporter writes what all processes count: the Prometheus text format and OpenMetrics.

Both have the same series under the same names. Where they differ: in OpenMetrics a counter's name
stands without `_total` in HELP and TYPE, and the text ends with `# EOF`. `_created` is in neither:
the files do not have the moment at which a series began.
"""

import logging
from collections import defaultdict
from pathlib import Path
from typing import Final, Literal, TypeAlias

from socks_tunnel.ops.meters import DamagedError, Identity, Sample, identity_of, read
from socks_tunnel.ops.metrics import Metrics, added_up, as_dict

_log = logging.getLogger(__name__)

Format: TypeAlias = Literal["text", "openmetrics"]

CONTENT_TYPES: Final[dict[Format, str]] = {
    "text": "text/plain; version=0.0.4; charset=utf-8",
    "openmetrics": "application/openmetrics-text; version=1.0.0; charset=utf-8",
}

ACCEPTED_MAX: Final = 32
"""Media ranges of an Accept header that are looked at."""


def negotiate(accept: str) -> Format:
    """Returns the format that an Accept header asks for (RFC 9110 section 12.5.1).

    OpenMetrics must be named; whoever takes anything gets the text format.
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
    """Reads the files of all slots; one that has not changed since is not read again."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, tuple[Identity, list[Sample] | None]] = {}
        self.changed = True
        """Whether the last :meth:`samples` found anything else than the one before."""

    def samples(self) -> tuple[list[Sample], int]:
        """Returns the samples of all slots, and how many files are damaged.

        A directory that is gone is empty: whoever counts makes it again. Raises :class:`OSError`
        if it cannot be read.
        """
        before, self._read = self._read, {}
        samples: list[Sample] = []
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
                if known is not None and known[0] == identity:
                    found = known[1]
                else:
                    found = self._read_file(path)
            except FileNotFoundError:  # its process ended, or it was replaced
                continue
            self._read[path] = identity, found
            if found is None:
                damaged += 1
            else:
                samples += found
        self.changed = {p: i for p, (i, _) in before.items()} != {
            p: i for p, (i, _) in self._read.items()
        }
        return samples, damaged

    def _read_file(self, path: Path) -> list[Sample] | None:
        """Returns the samples of a file, or None if it cannot be read."""
        try:
            return read(path)
        except FileNotFoundError:
            raise
        except (DamagedError, OSError) as error:
            _log.debug("the metrics file %s is damaged: %s", path, error)
            return None


class Renderer:
    """Writes the sum over all slots of `directory`.

    Reads files: called in the exporter process, never on the supervisor's event loop. Used by one
    thread at a time. While no file changes, the text is the one of before: a scrape by each of a
    dozen collectors costs what one does.
    """

    def __init__(self, directory: Path) -> None:
        self._reader = Reader(directory)
        self._template = Metrics()
        self._zeros = {f.name: list(f.zeros()) for f in self._template.families()}
        self._texts: dict[Format, bytes] = {}
        self._damaged = 0

    def __call__(self, wanted: Format) -> bytes:
        """Returns the text. A damaged file is left out, and counted. Raises :class:`OSError`."""
        samples, damaged = self._reader.samples()
        if self._reader.changed or damaged != self._damaged:
            self._texts = {}
            self._damaged = damaged
        if wanted not in self._texts:
            self._texts[wanted] = self._render(samples, damaged, wanted)
        return self._texts[wanted]

    def _render(self, samples: list[Sample], damaged: int, wanted: Format) -> bytes:
        by_family: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_family[sample.metric].append(sample)
        self._template.metrics_files_damaged.set(damaged)
        own = self._template.metrics_files_damaged
        by_family[own.name] = list(own.samples())
        lines: list[str] = []
        for family in self._template.families():
            found = self._zeros[family.name] + by_family.get(family.name, [])
            if not found:
                continue
            name = family.name
            if family.kind == "counter" and wanted == "text":
                name += "_total"
            lines.append(f"# HELP {name} {_help(family.help)}")
            lines.append(f"# TYPE {name} {family.kind}")
            for sample_name, texts, value in added_up(family, found):
                pairs = ",".join(f'{key}="{_label(text)}"' for key, text in as_dict(texts).items())
                lines.append(
                    f"{sample_name}{{{pairs}}} {value!r}" if pairs else f"{sample_name} {value!r}"
                )
        if wanted == "openmetrics":
            lines.append("# EOF")
        return "".join(f"{line}\n" for line in lines).encode()


def render(directory: Path, wanted: Format = "text") -> bytes:
    """Returns the text once; see :class:`Renderer`."""
    return Renderer(directory)(wanted)


def _help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _label(text: str) -> str:
    return _help(text).replace('"', '\\"')
