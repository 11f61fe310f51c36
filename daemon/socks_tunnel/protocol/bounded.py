"""Decodes structures from outside (msgpack, JSON) within bounds; makes outside text fit for logs.

Whoever sends a structure chooses its size, its depth and its types. A decoder without bounds lets a
message of one kilobyte cost half a gigabyte (a list may claim a length that it does not have), and
lets a structure a thousand levels deep reach `repr`, which then ends in RecursionError. So a
structure is walked over before anything is built of it, and it is refused as a whole if it exceeds
a bound. This is the only module that may call `msgpack.unpackb` or `json.loads` on what another
host or another program sent; `tests/unit/protocol/test_bounded.py` holds that.

The msgpack format is that of https://github.com/msgpack/msgpack/blob/master/spec.md: the first byte
of a value says its type and either its length or how many bytes of length follow.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import msgpack

_Buffer: TypeAlias = bytes | bytearray | memoryview

CLIP: Final = 200
"""Bytes (UTF-8) that a text from outside may take in a log field or a sentence."""

DEPTH_MAX: Final = 8
"""Lists and maps that may lie within each other."""

KEY_MAX: Final = 64
"""Bytes of a key of a map from another host."""

_ELLIPSIS: Final = "…"


class Malformed(ValueError):  # noqa: N818 - a verdict on what came in, not a fault of ours
    """A structure that exceeds a bound or does not have the expected form.

    The text is a sentence of bounded length without control characters.
    """


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one structure may cost. All lengths are counted in bytes of the encoded form.

    `size` bounds the whole, `text` one text, `binary` one binary value, `entries` one list or map,
    and `items` all values together, those inside lists and maps and the keys included.
    """

    size: int
    text: int = 4096
    binary: int = 4096
    entries: int = 64
    items: int = 1024
    depth: int = DEPTH_MAX


def clip(value: object, limit: int = CLIP) -> str:
    """Returns `value` as text that may be logged and shown on a terminal.

    The text takes at most `limit` bytes in UTF-8; an ellipsis at its end says that it was cut.
    Characters that a terminal would obey or that cannot be printed become U+FFFD. Of a list or a
    map only its kind and its length are told, so that no structure is walked.
    """
    match value:
        case str():
            text = value
        case bytes() | bytearray() | memoryview():
            text = f"{len(value)} bytes"
            if len(value):
                text += f" ({bytes(value[: max(0, limit // 4)]).hex()})"
        case dict():
            text = f"a map of {len(value)} entries"
        case list() | tuple() | set() | frozenset():
            text = f"a list of {len(value)} entries"
        case int() if not isinstance(value, bool) and value.bit_length() > 128:
            text = f"a number of {value.bit_length()} bits"  # str() refuses, or takes its time
        case None | bool() | int() | float():
            text = str(value)
        case BaseException():
            text = _sentence_of(value)
        case _:
            text = f"a value of type {type(value).__name__}"
    # A character takes a byte at least, so what is cut here could not have fitted.
    shown = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text[: limit + 1]
    )
    raw = shown.encode()
    if len(raw) <= limit:
        return shown
    room = max(0, limit - len(_ELLIPSIS.encode()))
    return raw[:room].decode(errors="ignore") + _ELLIPSIS


def _sentence_of(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:  # noqa: BLE001 - an exception that holds a hostile value may fail to print it
        text = ""
    return text or type(error).__name__


# --- msgpack ----------------------------------------------------------------------------------


def unpack(data: _Buffer, bounds: Bounds) -> object:
    """Returns the structure that `data` encodes. Raises :class:`Malformed`."""
    if len(data) > bounds.size:
        raise Malformed(f"it has {len(data)} bytes; at most {bounds.size} are accepted")
    _measure(data, bounds)
    return _unpack(data)


def unpack_map(data: _Buffer, bounds: Bounds) -> dict[str, Any]:
    """Returns the map that `data` encodes; all its keys are text. Raises :class:`Malformed`."""
    fields = unpack(data, bounds)
    if not isinstance(fields, dict):
        raise Malformed(f"it is no map but {_TYPE_NAMES[type(fields)]}")
    for key in fields:
        if not isinstance(key, str):
            raise Malformed("a key is not text")
    return fields


def unpack_own(data: _Buffer) -> object:
    """Returns the structure that a process of this instance sent. Raises :class:`Malformed`.

    Such a structure may have megabytes, for which the walk in Python would take too long. The
    library bounds its depth (1,024) and its lengths (by the bytes that are there).
    """
    return _unpack(data)


def _unpack(data: _Buffer) -> object:
    try:
        return msgpack.unpackb(data, strict_map_key=True)
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise Malformed(f"it is no msgpack: {clip(error)}") from None


_FIXED, _TEXT, _BINARY, _LIST, _MAP, _REFUSED = range(6)


def _first_bytes() -> Iterator[tuple[int, int, int]]:
    """Yields, for each first byte, (class, bytes of length that follow, length or size)."""
    sizes = {0xCA: 4, 0xCB: 8, 0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}
    sizes |= {0xD0: 1, 0xD1: 2, 0xD2: 4, 0xD3: 8}
    for byte in range(256):
        match byte:
            case _ if byte <= 0x7F or byte >= 0xE0 or byte in {0xC0, 0xC2, 0xC3}:
                yield _FIXED, 0, 0  # a small number, nil, false, true
            case _ if byte <= 0x8F:
                yield _MAP, 0, byte & 0x0F
            case _ if byte <= 0x9F:
                yield _LIST, 0, byte & 0x0F
            case _ if byte <= 0xBF:
                yield _TEXT, 0, byte & 0x1F
            case 0xC4 | 0xC5 | 0xC6:
                yield _BINARY, 1 << (byte - 0xC4), 0
            case 0xD9 | 0xDA | 0xDB:
                yield _TEXT, 1 << (byte - 0xD9), 0
            case 0xDC | 0xDD:
                yield _LIST, 2 << (byte - 0xDC), 0
            case 0xDE | 0xDF:
                yield _MAP, 2 << (byte - 0xDE), 0
            case _ if byte in sizes:
                yield _FIXED, 0, sizes[byte]
            case _:  # 0xC1 is never used; extension types (timestamps too) have no place here
                yield _REFUSED, 0, byte


_FIRST: Final = tuple(_first_bytes())
_LENGTHS: Final = {1: struct.Struct("!B"), 2: struct.Struct("!H"), 4: struct.Struct("!I")}


def _measure(data: _Buffer, bounds: Bounds) -> None:
    """Walks over one msgpack value without building it; raises :class:`Malformed`.

    The walk takes at most `bounds.items` steps, whatever lengths the data claims.
    """
    end = len(data)
    position = 0
    items = 0
    open_counts: list[int] = []  # values that are still to come, of each list or map around
    remaining = 1
    while True:
        while not remaining:
            if not open_counts:
                if position != end:
                    raise Malformed("it has bytes after its end")
                return
            remaining = open_counts.pop()
        remaining -= 1
        items += 1
        if items > bounds.items:
            raise Malformed(f"it has more than {bounds.items} values")
        if position >= end:
            raise Malformed("it ends too early")
        kind, prefix, length = _FIRST[data[position]]
        position += 1
        if prefix:
            if position + prefix > end:
                raise Malformed("it ends too early")
            (length,) = _LENGTHS[prefix].unpack_from(data, position)
            position += prefix
        if kind in {_LIST, _MAP}:
            if length > bounds.entries:
                raise Malformed(f"a list or map in it has more than {bounds.entries} entries")
            if len(open_counts) >= bounds.depth:
                raise Malformed(f"it is nested more than {bounds.depth} levels deep")
            open_counts.append(remaining)
            remaining = length if kind == _LIST else 2 * length
            continue
        if kind == _TEXT and length > bounds.text:
            raise Malformed(f"a text in it has more than {bounds.text} bytes")
        if kind == _BINARY and length > bounds.binary:
            raise Malformed(f"a binary value in it has more than {bounds.binary} bytes")
        if kind == _REFUSED:
            raise Malformed(f"it has a value of type 0x{length:02x}, which has no place in it")
        position += length
        if position > end:
            raise Malformed("it ends too early")


# --- JSON -------------------------------------------------------------------------------------


def json_map(text: bytes | str, *, size: int, depth: int = DEPTH_MAX) -> dict[str, Any]:
    """Returns the JSON object that `text` is. Raises :class:`Malformed`.

    NaN, infinities and numbers that no float holds are refused (RFC 8259 section 6 has no NaN).
    """
    if len(text) > size:
        raise Malformed(f"it has {len(text)} bytes; at most {size} are accepted")
    try:
        value = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise Malformed(f"it is no JSON: {clip(error)}") from None
    if not isinstance(value, dict):
        raise Malformed(f"it is no object but {_TYPE_NAMES[type(value)]}")
    waiting: list[tuple[object, int]] = [(value, 1)]
    while waiting:
        inner, level = waiting.pop()
        if level > depth:
            raise Malformed(f"it is nested more than {depth} levels deep")
        children = inner.values() if isinstance(inner, dict) else inner
        assert isinstance(children, list | type({}.values()))
        waiting += [(child, level + 1) for child in children if isinstance(child, dict | list)]
    return value


def _no_constant(name: str) -> float:
    raise Malformed(f"it has {name}, which is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise Malformed("a number in it is too large")
    return value


# --- fields of a map --------------------------------------------------------------------------


_TYPE_NAMES: Final[Mapping[type[Any], str]] = {
    str: "a text",
    bytes: "binary",
    list: "a list",
    dict: "a map",
    int: "a number",
    float: "a number",
    bool: "a truth value",
    type(None): "nothing",
}
"""What msgpack and JSON decode to."""


def unusable(fields: Mapping[str, Any], key: str) -> Malformed:
    """Returns the error for a field that is absent or has no use: it names and shows the field."""
    if key not in fields:
        return Malformed(f"{key!r} is absent")
    return Malformed(f"{key!r} is not usable: {clip(fields[key], CLIP // 2)}")


def integer(
    fields: Mapping[str, Any], key: str, low: int, high: int, default: int | None = None
) -> int:
    """Returns the whole number of `key`, from `low` to `high`, or `default` if it is absent.

    Raises :class:`Malformed`. True and false are no numbers here.
    """
    value = fields.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise unusable(fields, key)
    return value


def text(fields: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """Returns the text of `key`, or `default` if it is absent. Raises :class:`Malformed`."""
    value = fields.get(key, default)
    if not isinstance(value, str):
        raise unusable(fields, key)
    return value


def binary(fields: Mapping[str, Any], key: str, size: int | None = None) -> bytes:
    """Returns the binary value of `key`, of exactly `size` bytes. Raises :class:`Malformed`."""
    value = fields.get(key)
    if not isinstance(value, bytes) or (size is not None and len(value) != size):
        raise unusable(fields, key)
    return value


def texts(fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Returns the texts of `key`, none if it is absent. Raises :class:`Malformed`."""
    value = fields.get(key, [])
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise unusable(fields, key)
    return tuple(value)


def boolean(fields: Mapping[str, Any], key: str) -> bool:
    """Returns the truth value of `key`. Raises :class:`Malformed`."""
    value = fields.get(key)
    if not isinstance(value, bool):
        raise unusable(fields, key)
    return value


def number(fields: Mapping[str, Any], key: str) -> float:
    """Returns the finite number of `key`, whole or not. Raises :class:`Malformed`."""
    value = fields.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise unusable(fields, key)
    return float(value)


def binaries(fields: Mapping[str, Any], key: str) -> list[bytes]:
    """Returns the list of binary values of `key`. Raises :class:`Malformed`."""
    values = fields.get(key)
    if not isinstance(values, list) or not all(isinstance(value, bytes) for value in values):
        raise unusable(fields, key)
    return values


def table(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Returns the map of `key`, all of whose keys are text. Raises :class:`Malformed`."""
    value = fields.get(key)
    if not isinstance(value, dict) or not all(isinstance(name, str) for name in value):
        raise unusable(fields, key)
    return value


def tables(fields: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """Returns the list of maps of `key`, as :func:`table`. Raises :class:`Malformed`."""
    values = fields.get(key)
    if not isinstance(values, list):
        raise unusable(fields, key)
    return [table({key: value}, key) for value in values]


def rows(fields: Mapping[str, Any], key: str, length: int) -> list[list[int]]:
    """Returns the list of `key`, of lists of `length` whole numbers. Raises :class:`Malformed`."""
    values = fields.get(key)
    if not isinstance(values, list):
        raise unusable(fields, key)
    for row in values:
        if (
            not isinstance(row, list)
            or len(row) != length
            or not all(type(entry) is int for entry in row)
        ):
            raise unusable(fields, key)
    return values
