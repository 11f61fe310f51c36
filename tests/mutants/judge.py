"""Judges what forked.py found: every survivor is listed with its reason, and 90 % were noticed in each module.

Survivors that are listed count against that share too, or a long list would excuse everything. A module of a few mutants
has no share: there, a single one that is equivalent would be too many. A mutant that was not tried is not judged, and
fails. So does what is listed and has not survived: it is noticed now, or its function is another one now.

Run in mutmut's folder of the tree that tests/mutants/run assembles: judge.py SURVIVORS [PATTERN…]. A pattern is that of
names of mutants without `socks_tunnel.protocol.`; survivors.py says what a list is.
"""

import sys
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from mutants.changes import SOURCES, Change, Mutated, function_of, module_of, names_of
from mutants.forked import latest
from mutants.survivors import compare, parse

NOTICED_MIN = 0.9

SHARE_FROM = 20
"""A module with fewer mutants is not judged by its share."""


def shares(names: Iterable[str], survivors: Iterable[str]) -> dict[str, tuple[int, int]]:
    """Returns for each module how many of its mutants were tried, and how many of them survived."""
    counts: dict[str, tuple[int, int]] = {}
    lived = set(survivors)
    for name in names:
        tried, left = counts.get(module_of(name), (0, 0))
        counts[module_of(name)] = tried + 1, left + (name in lived)
    return counts


def is_poor(tried: int, left: int) -> bool:
    """Returns whether too few mutants of a module were noticed."""
    return tried >= SHARE_FROM and 1 - left / tried < NOTICED_MIN


def wholly_tried(there: Iterable[str], tried: Iterable[str]) -> set[str]:
    """Returns the functions of which all mutants were tried."""
    known = set(tried)
    return {function_of(n) for n in there} - {function_of(n) for n in there if n not in known}


def report(
    there: list[str],
    patterns: list[str],
    results: Mapping[str, str],
    listed: list[Change],
    changes: Mapping[str, Change],
) -> list[str]:
    """Prints the share of each module; returns what is wrong, in sentences.

    `there` are all mutants, `results` says what became of those that were tried, `changes` what those do
    that survived.
    """
    wanted = [name for name in there if any(fnmatchcase(name, p) for p in patterns)]
    tried = [name for name in wanted if name in results]
    survivors = [name for name in tried if results[name] == "survived"]
    wrong = [] if tried else ["nothing was tried"]
    for module, (count, left) in sorted(shares(tried, survivors).items()):
        print(
            f"{module}: {count} mutants, {left} survivors, {100 * (1 - left / count):.1f} % noticed"
        )
        if is_poor(count, left):
            wrong.append(f"{module}: less than {100 * NOTICED_MIN:.0f} % were noticed")
    functions = {function_of(name) for name in there}
    judged = wholly_tried(there, tried) | {
        c.function for c in listed if c.function not in functions
    }
    strange, stale = compare(listed, {name: changes[name] for name in survivors}, judged)
    wrong += [f"not noticed, and not listed: {name}\n{changes[name]}" for name in strange]
    wrong += [f"listed, and noticed or gone:\n{change}" for change in stale]
    if len(tried) < len(wanted):
        wrong.append(f"{len(wanted) - len(tried)} mutants were not tried")
    return wrong


def main(file: str, patterns: list[str]) -> int:
    """Returns the status with which the program ends."""
    there = [name for meta in sorted(SOURCES.glob("*.py.meta")) for name in names_of(meta)]
    results = {name: str(line["result"]) for name, line in latest().items()}
    modules = {module: Mutated(module) for module in {module_of(name) for name in there}}
    survivors = [name for name in there if results.get(name) == "survived"]
    changes = {name: modules[module_of(name)].change(name) for name in survivors}
    wrong = report(there, patterns, results, parse(Path(file).read_text()), changes)
    for sentence in wrong:
        print(sentence)
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
