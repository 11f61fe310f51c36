"""What holds for the shape of the code: tests beside sources, no circle of imports, nothing too long.

`exceptions.toml` beside this file lists what does not keep to it yet. The list may only become shorter:
`make structure` deletes from it what has been mended.
"""

from pathlib import Path

import pytest

from support import structure
from support.structure import (
    FINDERS,
    circles,
    foreign_writes,
    is_long,
    large_classes,
    own_fields,
    untested,
)

ADVICE = {
    "without_unit_test": "write the unit test, under the same path as the source "
    "(workers/socks_tunnel_workers/relay/tcp.py: tests/unit/workers/relay/test_tcp.py)",
    "in_circles": "these modules import themselves by way of others",
    "long_files": f"over {structure.LINES_MAX} lines: split it, or say in its docstring, on a line of "
    "its own, 'This file is long because …'",
    "large_classes": f"over {structure.METHODS_MAX} methods: split it, or say in its docstring, on a "
    "line of its own, 'This class has many methods because …'",
    "core_fields": "the core's fields change by its own methods: call one, or write one",
}


@pytest.mark.parametrize("name", FINDERS)
def test_only_what_is_listed_breaks_the_rule(name: str) -> None:
    found, listed = set(FINDERS[name]()), set(structure.listed()[name])
    assert not found - listed, ADVICE[name]
    assert not listed - found, "well done; `make structure` deletes these from exceptions.toml"


# --- the finders find -------------------------------------------------------------------------


def test_a_missing_unit_test_is_found(tmp_path: Path) -> None:
    for name in ("src/__init__.py", "src/a.py", "src/room/b.py", "tests/room/test_b.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert list(untested(tmp_path / "src", tmp_path / "tests", tmp_path)) == ["src/a.py"]


def test_circles_are_found() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a", "d"}, "e": {"d"}}) == [
        ["a", "b", "c"],
        ["d"],
    ]


@pytest.mark.parametrize(
    ("lines", "docstring", "long"),
    [
        (499, "", False),
        (500, "", True),
        (500, "A table.\n\nThis file is long because the RFC is.", False),
        (500, "This file is long because", True),
    ],
)
def test_a_long_file_is_found(lines: int, docstring: str, long: bool) -> None:
    filled = lines - docstring.count("\n")
    assert is_long(f'"""{docstring}"""\n' + "x = 1\n" * filled) is long


@pytest.mark.parametrize(
    ("methods", "reason", "found"),
    [
        (25, "", []),
        (26, "", ["A"]),
        (26, "This class has many methods because the protocol has many messages.", []),
    ],
)
def test_a_large_class_is_found(methods: int, reason: str, found: list[str]) -> None:
    body = "".join(f"    async def m{n}(self): pass\n" for n in range(methods))
    assert (
        list(large_classes(f'class A:\n    """What it is.\n\n    {reason}\n    """\n{body}'))
        == found
    )


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("session.core.limit = 1", ["session.core.limit"]),
        ("send.eof, x = True, 2", ["send.eof"]),
        ("scheduler.credit -= 1", ["scheduler.credit"]),
        ("core.questions[7] = None", ["core.questions[7]"]),
        ("del core.questions[7]", ["core.questions[7]"]),
        ("self.limit = core.limit", []),
        ("self.memory.limit = 1", []),
        ("core.another = core.questions[7]", []),
    ],
)
def test_a_field_of_the_core_that_is_set_elsewhere_is_found(
    statement: str, found: list[str]
) -> None:
    core = (
        "class A:\n    def f(self):\n        self.limit = self.eof = 0\n        self.credit += 1\n"
    )
    fields = own_fields(core) | {"questions"}
    assert fields == {"limit", "eof", "credit", "questions"}
    assert list(foreign_writes(statement, fields)) == found
