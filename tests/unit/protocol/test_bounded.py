"""The bounds of structures from outside, each passed by one, and what may be logged of a text."""

import ast
import json
import struct
from collections.abc import Callable
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
        (b"\xc4\x0a" + b"x" * 10, b"\xc4\x0b" + b"x" * 11, "binary"),
        (msgpack.packb("x" * 10), msgpack.packb("x" * 11), "text"),
        (msgpack.packb([1] * 5), msgpack.packb([1] * 6), "entries"),
        (msgpack.packb(dict.fromkeys("abcde")), msgpack.packb(dict.fromkeys("abcdef")), "entries"),
        (nested(8), nested(9), "nested"),
        (msgpack.packb([[1] * 5] * 5), msgpack.packb([[[1] * 5] * 5] * 5), "40 values"),
        (msgpack.packb(["x" * 10] * 5), bytes(1001), "1001 bytes"),
    ],
)
def test_each_bound_holds_at_its_value(accepted: bytes, refused: bytes, complaint: str) -> None:
    assert unpack(accepted, SMALL) == msgpack.unpackb(accepted)
    with pytest.raises(Malformed, match=complaint):
        unpack(refused, SMALL)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x91",
        b"\x81\xa1",
        b"\xcd\x01",
        b"\xda\x01",
        b"\xa3ab",
        b"\xc0\xc0",
        b"\xc1",
        b"\xd4\x01\x02",  # an extension
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\xa1\xff",  # no UTF-8
        b"\x81\x90\x01",  # a list as a key
    ],
)
def test_what_is_no_whole_value_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        unpack(raw, SMALL)


@pytest.mark.parametrize("raw", [b"\x90", b"\xc0", b"\x01", b"\x81\x01\x01", b"\x81\xc4\x01a\x01"])
def test_a_map_has_text_keys(raw: bytes) -> None:
    with pytest.raises(Malformed):
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


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "1",
        "null",
        '{"a": NaN}',
        '{"a": -Infinity}',
        '{"a": 1e999}',
        '{"a": ' + "1" * 5000 + "}",
        '{"a": ' * 9 + "1" + "}" * 9,
        '{"a":' * 1900 + "1" + "}" * 1900,
        "[" * 4000,
        "[" * 100_000 + "]" * 100_000,
        '"' + "x" * 1_000_000,
    ],
)
def test_json_that_is_no_small_object_is_refused(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        json_map(text, size=300_000)
    short(caught.value)


def test_json_is_read() -> None:
    fields = {"a": [1, {"b": [None, 2.5, "ü"]}]}
    assert json_map(json.dumps(fields), size=100) == fields
    assert json_map(json.dumps(fields).encode(), size=100) == fields
    with pytest.raises(Malformed, match="decode"):
        json_map(b'{"a": "\xff"}', size=100)


# --- fields -----------------------------------------------------------------------------------


def test_fields_are_taken_within_their_range() -> None:
    fields = {"n": 5, "t": "x", "b": b"12", "l": ["a"], "flag": True}
    assert bounded.integer(fields, "n", 5, 5) == 5
    assert bounded.integer(fields, "m", 0, 9, 3) == 3
    assert bounded.text(fields, "t") == "x"
    assert bounded.binary(fields, "b", 2) == b"12"
    assert bounded.texts(fields, "l") == ("a",)
    assert bounded.texts(fields, "absent") == ()
    refused: list[Callable[[], object]] = [
        lambda: bounded.integer(fields, "n", 6, 9),
        lambda: bounded.integer(fields, "n", 0, 4),
        lambda: bounded.integer(fields, "flag", 0, 4),
        lambda: bounded.integer(fields, "m", 0, 4),
        lambda: bounded.text(fields, "n"),
        lambda: bounded.binary(fields, "b", 3),
        lambda: bounded.binary(fields, "t"),
        lambda: bounded.texts(fields, "n"),
        lambda: bounded.texts({"l": ["a", 1]}, "l"),
    ]
    for take in refused:
        with pytest.raises(Malformed, match=r"'[a-z]+' is (absent|not usable)"):
            take()


def test_maps_and_rows_are_taken_by_their_shape() -> None:
    fields = {"map": {"a": 1}, "maps": [{"a": 1}, {}], "rows": [[1, 2], [3, 4]]}
    assert bounded.table(fields, "map") == {"a": 1}
    assert bounded.tables(fields, "maps") == [{"a": 1}, {}]
    assert bounded.rows(fields, "rows", 2) == [[1, 2], [3, 4]]
    refused: list[Callable[[], object]] = [
        lambda: bounded.table(fields, "maps"),
        lambda: bounded.table({"map": {1: 1}}, "map"),
        lambda: bounded.tables(fields, "map"),
        lambda: bounded.tables(fields, "rows"),
        lambda: bounded.rows(fields, "map", 2),
        lambda: bounded.rows(fields, "rows", 3),
        lambda: bounded.rows(fields, "maps", 2),
        lambda: bounded.rows({"rows": [[1, True]]}, "rows", 2),
    ]
    for take in refused:
        with pytest.raises(Malformed, match="is not usable"):
            take()


def test_an_unusable_field_is_shown_short() -> None:
    error = bounded.unusable({"n": "x\n" * 1000}, "n")
    assert len(str(error).encode()) <= bounded.CLIP


# --- nobody goes around it --------------------------------------------------------------------

ELSEWHERE = {"config/policies.py", "config/reading.py", "ops/multiprocess.py"}
"""Files that decode what the operator wrote, with answers of their own for each mistake, what a
process hands over that they have just started, or files of our own within bounds of their own."""


@pytest.mark.parametrize("package", ["daemon/socks_tunnel", "workers/socks_tunnel_workers"])
def test_nobody_else_decodes(package: str) -> None:
    root = SOURCES.parents[1] / package
    found = []
    for path in root.rglob("*.py"):
        name = str(path.relative_to(root))
        if name == "protocol/bounded.py" or name in ELSEWHERE:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr in {
                "unpackb",
                "unpack_from_msgpack",
                "Unpacker",
                "loads",
                "load_json",
            }:
                found.append(f"{name}:{node.lineno}: {ast.unparse(node)}")
    assert not [line for line in found if not line.endswith(("tomllib.loads",))], found


def test_the_first_bytes_are_those_of_the_specification() -> None:
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
