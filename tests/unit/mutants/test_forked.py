"""Which tests a mutant is tried by, and which results still hold. Trials: tests/integration/mutants."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest

from mutants import forked
from mutants.changes import SOURCES
from mutants.forked import ModuleTests, latest, record, to_try
from mutants.reach import Reached


@dataclass(frozen=True)
class Item:
    """What is asked of a test that pytest has collected."""

    path: Path
    name: str

    @property
    def nodeid(self) -> str:
        return f"{self.path.name}::{self.name}"


class Tree:
    """A tree with one module and some files of tests, as tests/mutants/run assembles it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source = root / SOURCES / "toy.py"
        self.source.parent.mkdir(parents=True)
        self.source.write_text("the module")
        self.items: list[Item] = []
        self.reaches: dict[str, Reached] = {}

    def add(self, file: str, name: str, seconds: float, *functions: str) -> None:
        """Adds a test that enters these functions."""
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text("from socks_tunnel.protocol.toy import small\n")
        item = Item(path, name)
        self.items.append(item)
        self.reaches[item.nodeid] = Reached(frozenset(functions), seconds)

    def tests(self) -> ModuleTests:
        tests = ModuleTests("toy", cast("list[pytest.Item]", self.items))
        tests.arrange(self.reaches)
        return tests


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    (tmp_path / "mutants").mkdir()
    monkeypatch.chdir(tmp_path / "mutants")
    return Tree(tmp_path)


def chosen(tests: ModuleTests, name: str) -> list[str]:
    """Returns the names of the tests that a mutant is tried by, in order."""
    return [cast("Item", item).name for item, _ in tests.of(name)]


def test_a_mutant_is_tried_by_the_tests_that_enter_its_function_the_module_s_own_first(
    tree: Tree,
) -> None:
    tree.add("property/test_toy.py", "drawn", 0.1, "toy.x_small")
    tree.add("unit/test_other.py", "elsewhere", 0.1, "toy.x_small")
    tree.add("unit/test_toy_more.py", "slow", 2.0, "toy.x_small", "toy.x_big")
    tree.add("unit/test_toy.py", "fast", 0.5, "toy.x_small")
    tree.add("unit/test_toy.py", "besides", 0.0, "toy.x_big")
    tests = tree.tests()
    assert chosen(tests, "toy.x_small__mutmut_1") == ["fast", "slow", "elsewhere", "drawn"]
    assert chosen(tests, "toy.x_big__mutmut_12") == ["besides", "slow"]
    assert chosen(tests, "toy.x_smaller__mutmut_1") == []


def test_files_that_do_not_import_the_module_are_left_out_if_another_does(tree: Tree) -> None:
    tree.add("unit/test_session.py", "far", 0.1, "toy.x_small")
    (tree.root / "unit/test_session.py").write_text("import something_else\n")
    assert chosen(tree.tests(), "toy.x_small__mutmut_1") == ["far"]
    tree.add("unit/test_toy.py", "near", 0.1, "toy.x_small")
    assert chosen(tree.tests(), "toy.x_small__mutmut_1") == ["near"]


NAME = "toy.x_small__mutmut_1"


@pytest.mark.parametrize(
    ("changed", "by", "again"),
    [
        (None, "test_toy.py", False),
        (None, "", False),
        ("test_toy.py", "test_toy.py", True),
        ("test_toy_more.py", "test_toy.py", False),
        ("test_toy_more.py", "", True),
        ("src", "test_toy.py", True),
        ("src", "", True),
    ],
)
def test_a_result_holds_while_what_it_rests_on_is_unchanged(
    changed: str | None, by: str, again: bool, tree: Tree
) -> None:
    tree.add("test_toy.py", "one", 0.1, "toy.x_small")
    tree.add("test_toy_more.py", "two", 0.1, "toy.x_small")
    record(NAME, "noticed" if by else "survived", tree.tests(), by and str(tree.root / by))
    if changed is not None:
        path = tree.source if changed == "src" else tree.root / changed
        path.write_text(path.read_text() + "# more\n")
    assert to_try([NAME], tree.tests(), latest()) == ([NAME] if again else [])


def test_the_last_result_of_a_mutant_counts(tree: Tree) -> None:
    tree.add("test_toy.py", "one", 0.1, "toy.x_small")
    assert latest() == {}
    assert to_try([NAME], tree.tests(), latest()) == [NAME]
    for result in ("survived", "ended"):
        record(NAME, result, tree.tests(), "")
    assert latest()[NAME]["result"] == "ended"
    lines = forked.TRIED.read_text().splitlines()
    assert [json.loads(line)["name"] for line in lines] == [NAME, NAME]
