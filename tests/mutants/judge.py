"""Judges what forked.py found: every survivor is listed with its reason, and 90 % were noticed in each module.

A survivor that is listed cannot be noticed by anybody, so it does not count for that share: in a module of nine
mutants one that is equivalent would be 11 %. How many they are is printed beside it.

Run in mutmut's folder of the tree that tests/mutants/run assembles: judge.py SURVIVORS [PATTERN…]. A line of SURVIVORS is the
name of a mutant without `socks_tunnel.protocol.`, in which `*` stands for anything, and the reason.
"""

import sys
from fnmatch import fnmatchcase
from pathlib import Path

from mutants.forked import SOURCES, latest, names_of

NOTICED_MIN = 0.9


def main(file: str, patterns: list[str]) -> int:
    reasons = dict(
        line.split(None, 1)
        for line in Path(file).read_text().splitlines()
        if line and not line.startswith("#")
    )
    tried = latest()
    there = [name for module in SOURCES.glob("*.py.meta") for name in names_of(module)]
    results = [
        name for name in there if name in tried and any(fnmatchcase(name, p) for p in patterns)
    ]
    survivors = sorted(name for name in results if tried[name]["result"] == "survived")
    strange = [name for name in survivors if not any(fnmatchcase(name, p) for p in reasons)]
    poor = not results
    for module in sorted({name.partition(".")[0] for name in results}):
        mine = [name for name in results if name.startswith(f"{module}.")]
        left = [name for name in strange if name.startswith(f"{module}.")]
        listed = sum(name.startswith(f"{module}.") for name in survivors) - len(left)
        noticed = 1 - len(left) / max(1, len(mine) - listed)
        poor = poor or noticed < NOTICED_MIN
        print(
            f"{module}: {len(mine)} mutants, {listed} listed, {100 * noticed:.1f} % of the others noticed"
        )
    for name in strange:
        print(f"not noticed, and no reason in {file}: {name}")
    return int(bool(strange) or poor)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
