"""What a mutant is called: its function, and the lines that it changes."""

import json
from pathlib import Path

import pytest

from mutants.changes import (
    SOURCES,
    Change,
    Mutated,
    changed,
    entered,
    function_of,
    module_of,
    names_of,
)

MODULE = """\
import x


def x_small__mutmut_orig(count):
    total = count
    return call(
        total,
        1,
    )


def x_small__mutmut_1(count):
    total = None
    return call(
        total,
        1,
    )


def x_small__mutmut_12(count):
    total = count
    return call(
        total,
        )


class Box:
    def xǁBoxǁfill__mutmut_orig(self, by=1):
        self.fill(by)

    def xǁBoxǁfill__mutmut_1(self, by=2):
        self.fill(by)
"""

SPANS = {
    "x_small__mutmut_orig": (4, 9),
    "x_small__mutmut_1": (10, 17),  # mutmut counts the empty lines before a function, or does not
    "x_small__mutmut_12": (20, 24),
    "xǁBoxǁfill__mutmut_orig": (28, 29),
    "xǁBoxǁfill__mutmut_1": (30, 32),
}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mutated:
    """A module as mutmut writes it, with the lines of each function beside it."""
    monkeypatch.chdir(tmp_path)
    SOURCES.mkdir(parents=True)
    (SOURCES / "toy.py").write_text(MODULE)
    (SOURCES / "toy.py.spans").write_text(json.dumps({"version": 1, "spans": SPANS}))
    return Mutated("toy")


@pytest.mark.parametrize(
    ("name", "module", "mangled", "function"),
    [
        ("toy.x_small__mutmut_12", "toy", "toy.x_small", "toy.small"),
        ("toy.x__private__mutmut_1", "toy", "toy.x__private", "toy._private"),
        ("toy.xǁBoxǁ__init____mutmut_3", "toy", "toy.xǁBoxǁ__init__", "toy.Box.__init__"),
    ],
)
def test_the_parts_of_a_name(name: str, module: str, mangled: str, function: str) -> None:
    assert (module_of(name), entered(name), function_of(name)) == (module, mangled, function)


def test_a_change_is_the_lines_that_differ(written: Mutated) -> None:
    assert written.change("toy.x_small__mutmut_1") == Change(
        "toy.small", ("total = count",), ("total = None",)
    )


def test_a_line_that_is_only_taken_away_has_none_in_its_place(written: Mutated) -> None:
    change = written.change("toy.x_small__mutmut_12")
    assert change == Change("toy.small", ("1,",), ())
    assert str(change) == "toy.small\n- 1,\n+"


def test_the_names_that_mutmut_gives_are_no_change(written: Mutated) -> None:
    change = written.change("toy.xǁBoxǁfill__mutmut_1")
    assert str(change) == "toy.Box.fill\n- def (self, by=1):\n+ def (self, by=2):"


def test_lines_that_are_only_added_take_none_away() -> None:
    assert changed(["a", "b"], ["a", "x", "b"]) == ((), ("x",))
    assert str(Change("toy.f", (), ("x",))) == "toy.f\n-\n+ x"


def test_the_names_of_a_module_are_in_the_file_beside_it(tmp_path: Path) -> None:
    meta = tmp_path / "toy.py.meta"
    key = "socks_tunnel.protocol.toy.x_small__mutmut_1"
    meta.write_text(json.dumps({"exit_code_by_key": {key: None}}))
    assert names_of(meta) == ["toy.x_small__mutmut_1"]
