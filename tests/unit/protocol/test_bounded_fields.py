"""Fields of maps from outside: each is taken as what it has to be, or named and shown."""

import re
from collections.abc import Callable

import pytest

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.bounded import Malformed


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


def test_the_plain_values_of_a_field() -> None:
    fields = {"flag": False, "n": 5, "x": 2.5, "nan": float("nan"), "b": [b"a", b""], "t": ["a"]}
    assert bounded.boolean(fields, "flag") is False
    assert bounded.number(fields, "x") == 2.5
    assert type(bounded.number(fields, "n")) is float
    assert bounded.binary({"b": b"123"}, "b") == b"123"
    assert bounded.binaries(fields, "b") == [b"a", b""]
    assert bounded.text({}, "t", "default") == "default"


@pytest.mark.parametrize(
    ("take", "sentence"),
    [
        (lambda: bounded.integer({}, "n", 0, 9), "'n' is absent"),
        (lambda: bounded.integer({"n": "5"}, "n", 0, 9), "'n' is not usable: 5"),
        (lambda: bounded.text({"n": 5}, "n"), "'n' is not usable: 5"),
        (lambda: bounded.binary({"n": "5"}, "n"), "'n' is not usable: 5"),
        (lambda: bounded.texts({"n": "5"}, "n"), "'n' is not usable: 5"),
        (lambda: bounded.boolean({"n": 1}, "n"), "'n' is not usable: 1"),
        (lambda: bounded.boolean({}, "n"), "'n' is absent"),
        (lambda: bounded.number({"n": True}, "n"), "'n' is not usable: True"),
        (lambda: bounded.number({"n": "1"}, "n"), "'n' is not usable: 1"),
        (lambda: bounded.number({"n": float("inf")}, "n"), "'n' is not usable: inf"),
        (lambda: bounded.binaries({"n": b"x"}, "n"), "'n' is not usable: 1 bytes (78)"),
        (
            lambda: bounded.binaries({"n": [b"x", "y"]}, "n"),
            "'n' is not usable: a list of 2 entries",
        ),
        (lambda: bounded.table({"n": [1]}, "n"), "'n' is not usable: a list of 1 entries"),
        (lambda: bounded.tables({"n": 5}, "n"), "'n' is not usable: 5"),
        (lambda: bounded.tables({"n": [{}, 5]}, "n"), "'n' is not usable: 5"),
        (lambda: bounded.rows({"n": 5}, "n", 1), "'n' is not usable: 5"),
        (lambda: bounded.rows({"n": [[1], 5]}, "n", 1), "'n' is not usable: a list of 2 entries"),
        (lambda: bounded.text({"n": b"x" * 99}, "n"), f"'n' is not usable: 99 bytes ({'78' * 25})"),
    ],
)
def test_an_unusable_field_is_named_and_shown(take: Callable[[], object], sentence: str) -> None:
    with pytest.raises(Malformed, match=f"^{re.escape(sentence)}$"):
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
