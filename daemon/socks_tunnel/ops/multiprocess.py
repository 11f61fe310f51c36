"""The files of prometheus-client's multiprocess mode, written and read as a whole. Sans-I/O.

The library's collector adds up what all processes have written. It reads one file for each process
and kind of metric, all numbers in the byte order of the machine::

    file     USED 4 | PADDING 4 | ENTRY …               USED counts all bytes of the file in use
    entry    LENGTH 4 | KEY | SPACES 1 to 8 | VALUE 8 | TIME 8
             LENGTH is that of KEY; the spaces end at a multiple of 8; VALUE and TIME are doubles
    key      JSON: [metric, sample, {label: value, …}, help]

Source: prometheus_client/mmap_dict.py and multiprocess.py, version 0.22 and later. The buckets of a
histogram stand there by themselves; the collector makes the running sums.
"""

import json
import math
import struct
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from socks_tunnel.ops.files import open_regular

Kind: TypeAlias = Literal["counter", "gauge", "histogram"]
Labels: TypeAlias = tuple[str, ...]
"""Names and values in turn."""

FILE_MAX: Final = 4 * 1_048_576
"""Longest file in bytes that is read."""

KEY_MAX: Final = 4096
"""Longest key in bytes."""

KINDS: Final[tuple[Kind, ...]] = ("counter", "gauge", "histogram")

_PREFIXES: Final[dict[Kind, str]] = {
    "counter": "counter",
    # Gauges of live processes, added up over all of them.
    "gauge": "gauge_livesum",
    "histogram": "histogram",
}
_INT: Final = struct.Struct("i")
_HEAD: Final = struct.Struct("ii")
_NUMBERS: Final = struct.Struct("dd")


class Sample(NamedTuple):
    """One number: `metric` is the name of the family, `name` that of the sample in it."""

    metric: str
    name: str
    labels: Labels
    value: float


class DamagedError(Exception):
    """A file of samples cannot be read; the text is a sentence without the file's name."""


def file_of(directory: Path, kind: Kind, slot: str) -> Path:
    """Returns the file that has the metrics of this kind for a slot."""
    return directory / f"{_PREFIXES[kind]}_{slot}.db"


def slot_of(path: Path) -> str | None:
    """Returns the slot of a file, or None if :func:`file_of` gives no such name."""
    for prefix in _PREFIXES.values():
        if path.name.startswith(f"{prefix}_"):
            return path.stem.removeprefix(f"{prefix}_")
    return None


def encode(samples: Iterable[tuple[str, Sample]]) -> bytes:
    """Returns the content of a file. Each sample comes with the help of its family."""
    return whole([entries(samples)])


def entries(samples: Iterable[tuple[str, Sample]]) -> bytes:
    """Returns entries as bytes. :func:`whole` makes a file's content of them."""
    parts = []
    for help_text, (metric, name, labels, value) in samples:
        parts.append(_key(metric, name, labels, help_text))
        parts.append(_NUMBERS.pack(value, 0.0))
    return b"".join(parts)


def whole(parts: Sequence[bytes]) -> bytes:
    """Returns the content of a file that has these entries."""
    size = _HEAD.size + sum(map(len, parts))
    return b"".join((_HEAD.pack(size, 0), *parts))


@lru_cache(maxsize=8192)
def _key(metric: str, name: str, labels: Labels, help_text: str) -> bytes:
    """Returns the bytes before the numbers of an entry. They are cached, as they never change."""
    named = dict(zip(labels[::2], labels[1::2], strict=True))
    # Written as the library does, so that its keys and ours are the same bytes.
    key = json.dumps([metric, name, named, help_text], sort_keys=True).encode()
    return _INT.pack(len(key)) + key + b" " * (8 - (len(key) + 4) % 8)


def decode(content: bytes) -> Iterator[Sample]:
    """Yields the samples of a file. Raises :class:`DamagedError`."""
    if len(content) > FILE_MAX:
        raise DamagedError(f"it is longer than {FILE_MAX} bytes")
    if len(content) < _HEAD.size:
        raise DamagedError("its header is missing")
    used, _ = _HEAD.unpack_from(content)
    if not _HEAD.size <= used <= len(content):
        raise DamagedError(f"it says that {used} of {len(content)} bytes are used")
    at = _HEAD.size
    while at < used:
        if at + _INT.size > used:
            raise DamagedError("it ends within an entry")
        (length,) = _INT.unpack_from(content, at)
        end = at + _INT.size + length + 8 - (length + 4) % 8
        if not 0 < length <= KEY_MAX or end + _NUMBERS.size > used:
            raise DamagedError("an entry is longer than the file")
        value, _ = _NUMBERS.unpack_from(content, end)
        yield _sample(content[at + _INT.size : at + _INT.size + length], value)
        at = end + _NUMBERS.size


def _sample(key: bytes, value: float) -> Sample:
    if not math.isfinite(value):
        raise DamagedError("an entry has not the expected form")
    metric, name, labels = _fields(key)
    return Sample(metric, name, labels, value)


@lru_cache(maxsize=8192)
def _fields(key: bytes) -> tuple[str, str, Labels]:
    """Returns the fields of a key, cached for the next files. Raises :class:`DamagedError`."""
    try:
        fields = json.loads(key)
        metric, name, labels, help_text = fields
        pairs = [text for pair in labels.items() for text in pair]
        good = all(isinstance(text, str) for text in (metric, name, help_text, *pairs))
    except (ValueError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise DamagedError("an entry has not the expected form")
    return metric, name, tuple(pairs)


def read(path: Path) -> list[Sample]:
    """Returns the samples of a file. Raises :class:`OSError` and :class:`DamagedError`."""
    with open_regular(path) as file:
        content = file.read(FILE_MAX + 1)
    return list(decode(content))
