"""Judges what forked.py found: every survivor is listed with its reason, and 90 % were noticed in each module.

Survivors that are listed count against that share too, or a long list would excuse everything. A module of a few mutants
has no share: there, a single one that is equivalent would be too many. A mutant that was not tried is not judged, and fails.

Run in mutmut's folder of the tree that tests/mutants/run assembles: judge.py SURVIVORS [PATTERN…]. A line of SURVIVORS is the
name of a mutant without `socks_tunnel.protocol.`, in which `*` stands for anything, and the reason.
"""

import sys
from fnmatch import fnmatchcase
from pathlib import Path

from mutants.forked import SOURCES, latest, names_of

NOTICED_MIN = 0.9

SHARE_FROM = 20
"""A module with fewer mutants is not judged by its share."""


def main(file: str, patterns: list[str]) -> int:
    reasons = dict(
        line.split(None, 1)
        for line in Path(file).read_text().splitlines()
        if line and not line.startswith("#")
    )
    tried = latest()
    there = [name for module in SOURCES.glob("*.py.meta") for name in names_of(module)]
    wanted = [name for name in there if any(fnmatchcase(name, p) for p in patterns)]
    results = [name for name in wanted if name in tried]
    untried = len(wanted) - len(results)
    survivors = sorted(name for name in results if tried[name]["result"] == "survived")
    strange = [name for name in survivors if not any(fnmatchcase(name, p) for p in reasons)]
    poor = not results
    for module in sorted({name.partition(".")[0] for name in results}):
        mine = [name for name in results if name.startswith(f"{module}.")]
        left = [name for name in survivors if name.startswith(f"{module}.")]
        noticed = 1 - len(left) / len(mine)
        poor = poor or (len(mine) >= SHARE_FROM and noticed < NOTICED_MIN)
        print(f"{module}: {len(mine)} mutants, {100 * noticed:.1f} % noticed")
    for name in strange:
        print(f"not noticed, and no reason in {file}: {name}")
    if untried:
        print(f"{untried} mutants were not tried")
    return int(bool(strange) or poor or bool(untried))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
