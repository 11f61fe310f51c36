"""The bounds of structures from outside, each passed by one, and what may be logged of a text."""

import ast
import json
import re
import struct
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import socks_tunnel
from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.bounded import (
    Bounds,
    Malformed,
    clip,
    json_map,
    unpack,
    unpack_map,
    unpack_own,
)

TOO_MANY = "a list or map in it has more than 5 entries"
FORTY = msgpack.packb([*[[1] * 5] * 4, [[1] * 5, [1] * 5, [1]]])
FORTY_ONE = msgpack.packb([*[[1] * 5] * 4, [[1] * 5, [1] * 5, [1, 1]]])
SMALL = Bounds(size=1000, text=10, binary=10, entries=5, items=40)
SOURCES = Path(socks_tunnel.__file__).parent


def short(error: Malformed) -> None:
    sentence = str(error)
    assert len(sentence.encode()) <= bounded.CLIP + 40
    assert sentence.isprintable()


def nested(levels: int) -> bytes:
    return b"\x91" * levels + b"\xc0"


@pytest.mark.parametrize(
    ("accepted", "refused", "complaint"),
    [
        (
            b"\xc4\x0a" + b"x" * 10,
            b"\xc4\x0b" + b"x" * 11,
            "a binary value in it has more than 10 bytes",
        ),
        (msgpack.packb("x" * 10), msgpack.packb("x" * 11), "a text in it has more than 10 bytes"),
        (msgpack.packb([1] * 5), msgpack.packb([1] * 6), TOO_MANY),
        (msgpack.packb(dict.fromkeys("abcde")), msgpack.packb(dict.fromkeys("abcdef")), TOO_MANY),
        (nested(8), nested(9), "it is nested more than 8 levels deep"),
        (FORTY, FORTY_ONE, "it has more than 40 values"),
        (
            msgpack.packb(["x" * 10] * 5),
            bytes(1001),
            "it has 1001 bytes; at most 1000 are accepted",
        ),
    ],
)
def test_each_bound_holds_at_its_value(accepted: bytes, refused: bytes, complaint: str) -> None:
    assert unpack(accepted, SMALL) == msgpack.unpackb(accepted)
    with pytest.raises(Malformed, match=f"^{re.escape(complaint)}$"):
        unpack(refused, SMALL)


def test_a_whole_as_long_as_may_be_is_accepted() -> None:
    raw = msgpack.packb(b"x" * 997)
    assert len(raw) == 1000
    assert unpack(raw, Bounds(size=1000)) == b"x" * 997


def test_lists_beside_each_other_are_not_deep() -> None:
    value: list[Any] = [[], {}, [[]], [[], []]]
    assert unpack(msgpack.packb(value), Bounds(size=100, depth=3)) == value


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", "it ends too early"),
        (b"\x91", "it ends too early"),
        (b"\x81\xa1", "it ends too early"),
        (b"\xcd\x01", "it ends too early"),
        (b"\xda\x01", "it ends too early"),
        (b"\xa3ab", "it ends too early"),
        (b"\xc0\xc0", "it has bytes after its end"),
        (b"\xc1", "it has a value of type 0xc1, which has no place in it"),
        (b"\xd4\x01\x02", "it has a value of type 0xd4, which has no place in it"),  # an extension
        (b"\xd6\xff\0\0\0\0", "it has a value of type 0xd6, which has no place in it"),  # a time
        (b"\xa1\xff", "it is no msgpack: 'utf-8' codec can't decode byte 0xff in position 0: "),
        (b"\x81\x90\x01", "it is no msgpack: "),  # a list as a key
        (b"\x81\x01\x02", "it is no msgpack: int is not allowed for map key"),
    ],
)
def test_what_is_no_whole_value_is_refused(raw: bytes, sentence: str) -> None:
    with pytest.raises(Malformed) as caught:
        unpack(raw, SMALL)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value) == sentence or sentence.startswith("it is no msgpack: ")


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"\x90", "it is no map but a list"),
        (b"\xc0", "it is no map but nothing"),
        (b"\xa1a", "it is no map but a text"),
        (b"\xc4\x01a", "it is no map but binary"),
        (b"\x01", "it is no map but a number"),
        (b"\x81\xc4\x01a\x01", "a key is not text"),
        (b"\x82\xa1b\x01\xc4\x01a\x01", "a key is not text"),
    ],
)
def test_a_map_has_text_keys(raw: bytes, sentence: str) -> None:
    with pytest.raises(Malformed, match=f"^{re.escape(sentence)}$"):
        unpack_map(raw, SMALL)


@pytest.mark.parametrize("levels", [9, 500, 1000, 60_000])
def test_depth_costs_nothing(levels: int) -> None:
    with pytest.raises(Malformed, match="nested"):
        unpack(nested(levels), Bounds(size=65_536, items=65_536))


def test_a_length_that_is_only_claimed_costs_nothing() -> None:
    # Each level would reserve 65,535 places: half a gigabyte in all.
    raw = b"\xdc\xff\xff" * 1000
    with pytest.raises(Malformed, match="entries"):
        unpack(raw, Bounds(size=65_536))


@given(
    st.binary(max_size=64)
    | st.recursive(
        st.none() | st.integers(-(1 << 63), (1 << 64) - 1) | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    ).map(msgpack.packb)
)
@example(nested(1000))
@example(b"\xc1")
def test_any_bytes_are_what_the_library_says_or_malformed(raw: bytes) -> None:
    try:
        value = unpack(raw, Bounds(size=65_536))
    except Malformed as error:
        short(error)
        return
    # Compared by what is sent, since NaN equals nothing.
    assert msgpack.packb(value) == msgpack.packb(msgpack.unpackb(raw))


@given(st.binary(max_size=64))
@example(nested(1000))
@example(nested(60_000))
def test_any_bytes_of_our_own_processes_are_a_value_or_malformed(raw: bytes) -> None:
    try:
        unpack_own(raw)
    except Malformed as error:
        short(error)


def test_our_own_processes_may_send_what_no_other_host_may() -> None:
    value = {"a": [b"x" * 5000] * 100, "b": "y" * 5000}
    raw = msgpack.packb(value)
    assert unpack_own(raw) == value
    with pytest.raises(Malformed, match="more than"):
        unpack(raw, Bounds(size=len(raw)))


# --- clip -------------------------------------------------------------------------------------


@given(
    st.text()
    | st.binary()
    | st.integers()
    | st.floats()
    | st.none()
    | st.lists(st.integers())
    | st.dictionaries(st.integers(), st.none())
    | st.text().map(ValueError),
    st.integers(3, 300),
)
def test_what_is_clipped_fits_and_is_printable(value: object, limit: int) -> None:
    shown = clip(value, limit)
    assert len(shown.encode()) <= limit
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("büro", "büro"),
        ("a\x1b[2Jb\n\u202ec\ud800", "a\ufffd[2Jb\ufffd\ufffdc\ufffd"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 197 + "…"),
        ("ü" * 101, "ü" * 98 + "…"),
        (b"", "0 bytes"),
        (b"\x01\xff", "2 bytes (01ff)"),
        (memoryview(b"\x01" * 51), "51 bytes (" + "01" * 50 + ")"),
        ((1, 2), "a list of 2 entries"),
        ({3}, "a list of 1 entries"),
        (2.5, "2.5"),
        ((1 << 128) - 1, "340282366920938463463374607431768211455"),
        (1 << 128, "a number of 129 bits"),
        (7, "7"),
        (True, "True"),
        (None, "None"),
        ([1, 2], "a list of 2 entries"),
        ({"a": 1}, "a map of 1 entries"),
        (ValueError("no\n"), "no\ufffd"),
        (ValueError(), "ValueError"),
        (object(), "a value of type object"),
    ],
)
def test_how_a_value_is_shown(value: object, shown: str) -> None:
    assert clip(value) == shown


@pytest.mark.parametrize(("limit", "shown"), [(3, "…"), (4, "x…"), (6, "xx…"), (7, "xxü…")])
def test_a_text_is_cut_between_characters(limit: int, shown: str) -> None:
    assert clip("xxü" + "x" * 9, limit) == shown


def test_an_exception_that_cannot_be_printed_is_named() -> None:
    class Hostile(Exception):
        def __str__(self) -> str:
            raise RecursionError

    assert clip(Hostile()) == "Hostile"


def test_a_number_of_many_digits_is_only_measured() -> None:
    assert clip(10**5000) == "a number of 16610 bits"  # str() would raise ValueError


def test_a_deep_structure_is_not_walked() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert clip(deep) == "a list of 1 entries"


# --- JSON -------------------------------------------------------------------------------------


TOO_DEEP = "it is nested more than 8 levels deep"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "it is no JSON: "),
        ("{", "it is no JSON: "),
        ("[]", "it is no object but a list"),
        ("1", "it is no object but a number"),
        ("1.5", "it is no object but a number"),
        ("true", "it is no object but a truth value"),
        ("null", "it is no object but nothing"),
        ('"a"', "it is no object but a text"),
        ('{"a": NaN}', "it is no JSON: it has NaN, which is no number"),
        ('{"a": -Infinity}', "it is no JSON: it has -Infinity, which is no number"),
        ('{"a": 1e999}', "it is no JSON: a number in it is too large"),
        ('{"a": ' + "1" * 5000 + "}", "it is no JSON: "),
        ('{"a": ' * 9 + "1" + "}" * 9, TOO_DEEP),
        ('{"a": [{"b": [' * 2 + '{"c": 1}' + "]}]}" * 2, TOO_DEEP),
        ('{"a": ' * 9 + "1" + "}" * 8 + ', "b": {}}', TOO_DEEP),
        ('{"a":' * 1900 + "1" + "}" * 1900, "it is "),
        ("[" * 4000, "it is no JSON: "),
        ("[" * 100_000 + "]" * 100_000, "it is no JSON: "),
        ('"' + "x" * 1_000_000, "it has 1000001 bytes; at most 300000 are accepted"),
    ],
)
def test_json_that_is_no_small_object_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(Malformed) as caught:
        json_map(text, size=300_000)
    short(caught.value)
    assert str(caught.value).startswith(sentence)
    assert str(caught.value) == sentence or sentence in {"it is ", "it is no JSON: "}


def test_json_may_be_as_long_and_as_deep_as_is_allowed() -> None:
    text = '{"a": [{"b": [' * 2 + "1" + "]}]}" * 2
    assert json_map(text, size=len(text)) == {"a": [{"b": [{"a": [{"b": [1]}]}]}]}
    with pytest.raises(Malformed, match="bytes; at most"):
        json_map(text, size=len(text) - 1)
    assert json_map('{"a": [], "b": [], "c": {}}', size=100, depth=2) == {"a": [], "b": [], "c": {}}
    with pytest.raises(Malformed, match="nested more than 1 levels deep"):
        json_map('{"a": []}', size=100, depth=1)


def test_json_is_read() -> None:
    fields = {"a": [1, {"b": [None, 2.5, "ü"]}]}
    assert json_map(json.dumps(fields), size=100) == fields
    assert json_map(json.dumps(fields).encode(), size=100) == fields
    with pytest.raises(Malformed, match="decode"):
        json_map(b'{"a": "\xff"}', size=100)


# --- nobody goes around it --------------------------------------------------------------------

ELSEWHERE = {"config/policies.py", "config/reading.py", "ops/multiprocess.py"}
"""Files that decode what the operator wrote, with answers of their own for each mistake, what a
process hands over that they have just started, or files of our own within bounds of their own."""


DECODERS = {"unpackb", "unpack_from_msgpack", "Unpacker", "loads", "load_json"}
"""Names of functions that decode, of whatever module."""


def decoders_in(source: str) -> list[str]:
    """Where a source imports a decoder, or takes it from a module: `json.loads`."""
    tree = ast.parse(source)
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {
        alias.asname or alias.name.partition(".")[0] for node in imports for alias in node.names
    }
    found = [
        f"{node.lineno}: {alias.name}"
        for node in imports
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.name in DECODERS
    ]
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute) or node.attr not in DECODERS:
            continue
        # A field of an object may have the same name, as `presence.loads` has.
        if isinstance(node.value, ast.Name) and node.value.id in modules:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return [line for line in found if not line.endswith("tomllib.loads")]


def test_a_decoder_is_seen_however_it_is_imported() -> None:
    assert decoders_in("import json\njson.loads(x)") == ["2: json.loads"]
    assert decoders_in("import msgpack as m\nm.unpackb(x)") == ["2: m.unpackb"]
    assert decoders_in("from json import loads") == ["1: loads"]
    assert decoders_in("import json\nself.loads, presence.loads\nself.a.loads") == []
    assert decoders_in("import tomllib\ntomllib.loads(x)") == []


@pytest.mark.parametrize("package", ["daemon/socks_tunnel", "workers/socks_tunnel_workers"])
def test_nobody_else_decodes(package: str) -> None:
    root = SOURCES.parents[1] / package
    found = []
    for path in root.rglob("*.py"):
        name = str(path.relative_to(root))
        if name != "protocol/bounded.py" and name not in ELSEWHERE:
            found += [f"{name}:{line}" for line in decoders_in(path.read_text("utf-8"))]
    assert not found


def test_each_first_byte_is_what_the_library_takes_it_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_FIRST", tuple(bounded._first_bytes()))
    assert len(bounded._FIRST) == 256
    wide = Bounds(size=100, items=100)
    for byte in range(256):
        raw = bytes((byte,)) + bytes(40)
        if byte == 0xC1 or 0xC7 <= byte <= 0xC9 or 0xD4 <= byte <= 0xD8:
            with pytest.raises(Malformed, match=f"type 0x{byte:02x}"):
                unpack(raw, wide)
            continue
        library = msgpack.Unpacker(strict_map_key=False)
        library.feed(raw)
        value = library.unpack()
        bounded._measure(raw[: library.tell()], wide)
        with pytest.raises(Malformed, match="after its end"):
            bounded._measure(raw[: library.tell() + 1], wide)
        if library.tell() > 1:
            with pytest.raises(Malformed, match="too early"):
                bounded._measure(raw[: library.tell() - 1], wide)
        assert isinstance(value, dict | list | str | bytes | int | float | None)


def test_the_first_bytes_are_those_of_the_specification(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded, "_FIRST", tuple(bounded._first_bytes()))
    # The library decides: whatever it encodes is measured as one value.
    for value in (
        0,
        127,
        128,
        255,
        256,
        65_535,
        65_536,
        1 << 32,
        (1 << 64) - 1,
        -1,
        -32,
        -33,
        -128,
        -129,
        -32_768,
        -32_769,
        -(1 << 31),
        -(1 << 63),
        1.5,
        None,
        True,
        False,
        "",
        "x" * 31,
        "x" * 32,
        "x" * 255,
        "x" * 256,
        "x" * 65_536,
        b"",
        b"x" * 255,
        b"x" * 256,
        b"x" * 65_536,
        [],
        [1] * 15,
        [1] * 16,
        [1] * 65_536,
        {},
        {str(n): n for n in range(16)},
        {str(n): n for n in range(70_000)},
    ):
        raw = msgpack.packb(value)
        wide = Bounds(size=1 << 22, text=1 << 20, binary=1 << 20, entries=1 << 20, items=1 << 20)
        assert unpack(raw, wide) == value
        for end in {0, 1, len(raw) // 2, len(raw) - 1}:
            if end < len(raw):
                with pytest.raises(Malformed):
                    unpack(raw[:end], wide)
    assert unpack(struct.pack("!Bf", 0xCA, 0.5), SMALL) == 0.5
