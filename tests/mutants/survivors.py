"""The list of mutants that no test can or need notice: tests/mutants/survivors.txt.

::

    module.Class.method
    - the line that the mutant takes away
    + the line that it puts in its place
    - another one, of the same function
    +
    = why no test notices any of these

A change is some lines with `-` and then some with `+`; where there are none, the sign stands alone. Each one
excuses one mutant, so that of two that make the same change at two places, one is not excused by the other.
Lines with `#` are comments.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from mutants.changes import Change


class Unreadable(ValueError):
    """A line of the list that is out of place."""


def parse(text: str) -> list[Change]:
    """Returns the changes that have a reason. Raises :class:`Unreadable`."""
    found: list[Change] = []
    function = ""
    before: list[str] = []
    after: list[str] = []
    waiting: list[Change] = []

    def end_of_change() -> None:
        if before or after:
            if not (before and after):
                raise Unreadable(f"{function}: a change has lines with - and lines with +")
            waiting.append(Change(function, _lines(before), _lines(after)))
            before.clear()
            after.clear()

    for line in text.splitlines():
        sign, rest = line[:1], line[2:]
        if not line.strip() or sign == "#":
            continue
        if sign == "-":
            if after:
                end_of_change()
            before.append(rest)
        elif sign == "+":
            after.append(rest)
        elif sign == "=":
            end_of_change()
            if not rest.strip() or not waiting:
                raise Unreadable(f"{function}: a reason stands after the changes that it is for")
            found += waiting
            waiting = []
        else:
            if before or after or waiting:
                raise Unreadable(f"{function}: no reason is given")
            function = line.strip()
    if before or after or waiting:
        raise Unreadable(f"{function}: no reason is given")
    return found


def _lines(written: Iterable[str]) -> tuple[str, ...]:
    """Returns the lines; a sign that stands alone is none."""
    return tuple(line for line in written if line)


def compare(
    listed: Iterable[Change], survivors: Mapping[str, Change], judged: set[str]
) -> tuple[list[str], list[Change]]:
    """Returns the survivors that are not listed, and what is listed and has not survived.

    `survivors` has the change of each mutant by its name, `judged` the functions of which all mutants were tried: what is
    listed of others is not looked at.
    """
    left = Counter(listed)
    strange = []
    for name, change in sorted(survivors.items()):
        if left[change]:
            left[change] -= 1
        else:
            strange.append(name)
    stale = [change for change in _each(left) if change.function in judged]
    return strange, stale


def _each(counted: Counter[Change]) -> Iterator[Change]:
    return iter(sorted(counted.elements()))
