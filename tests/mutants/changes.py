"""What a mutant is called in survivors.txt: its function, and the lines that it changes.

mutmut numbers the mutants of a function, and each edit of that function moves the numbers. The lines that a mutant takes
away and puts in their place say what it is, whatever stands around them.
"""

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PREFIX = "socks_tunnel.protocol."
SOURCES = Path("src/socks_tunnel/protocol")

_MARK = "__mutmut_"
ORIGINAL = f"{_MARK}orig"
"""How the form of a function ends that mutmut left as it was."""
_SEPARATOR = "\N{LATIN LETTER LATERAL CLICK}"
"""What mutmut puts around the name of a class."""


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """What a mutant does: `function` is `module.function` or `module.Class.method`, lines are without indentation."""

    function: str
    before: tuple[str, ...]
    after: tuple[str, ...]

    def __str__(self) -> str:
        """Returns the change as it stands in survivors.txt."""
        before = [f"- {line}" for line in self.before] or ["-"]
        after = [f"+ {line}" for line in self.after] or ["+"]
        return "\n".join((self.function, *before, *after))


def module_of(name: str) -> str:
    """Returns the module of a mutant."""
    return name.partition(".")[0]


def entered(name: str) -> str:
    """Returns the function of a mutant as mutmut calls it, with its module."""
    return name.partition(_MARK)[0]


def function_of(name: str) -> str:
    """Returns the function of a mutant as a person calls it, with its module and class."""
    module, _, mangled = entered(name).partition(".")
    if mangled.startswith(f"x{_SEPARATOR}"):
        _, owner, method = mangled.split(_SEPARATOR)
        return f"{module}.{owner}.{method}"
    return f"{module}.{mangled.removeprefix('x_')}"


def names_of(meta: Path) -> list[str]:
    """Returns the names of the mutants of a module, without PREFIX. `meta` is mutmut's file about it."""
    found: dict[str, object] = json.loads(meta.read_text())["exit_code_by_key"]
    return [name.removeprefix(PREFIX) for name in found]


def changed(
    original: Sequence[str], mutated: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the lines that a mutant takes away, and those that it puts in their place."""
    before: list[str] = []
    after: list[str] = []
    matcher = difflib.SequenceMatcher(None, original, mutated, autojunk=False)
    for what, i, j, k, n in matcher.get_opcodes():
        if what != "equal":
            before += original[i:j]
            after += mutated[k:n]
    return tuple(before), tuple(after)


class Mutated:
    """A module as mutmut wrote it: each function in all its forms."""

    def __init__(self, module: str) -> None:
        source = SOURCES / f"{module}.py"
        self._lines = source.read_text().splitlines()
        self._spans = json.loads(source.with_suffix(".py.spans").read_text())["spans"]

    def change(self, name: str) -> Change:
        """Returns what a mutant of this module does."""
        mangled = entered(name).partition(".")[2]
        forms = f"{mangled}{ORIGINAL}", name.partition(".")[2]
        return Change(function_of(name), *changed(*map(self._form, forms)))

    def _form(self, name: str) -> list[str]:
        """Returns the lines of a function in one form, without its name, indentation and empty lines."""
        first, last = self._spans[name]
        lines = [line.strip().replace(name, "") for line in self._lines[first - 1 : last]]
        return [line for line in lines if line]
