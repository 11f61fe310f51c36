"""Judges what mutmut found: every survivor is listed with its reason, and 90 % of all were noticed.

Run in the tree that tests/mutants/run assembles: judge.py SURVIVORS [PATTERN…]. A line of SURVIVORS is the
name of a mutant without `socks_tunnel.protocol.`, in which `*` stands for anything, and the reason.
"""

import json
import sys
from fnmatch import fnmatchcase
from pathlib import Path

PREFIX = "socks_tunnel.protocol."
NOTICED_MIN = 0.9

# What mutmut writes as the exit status of the tests: 0, they passed; 33, no test runs that code.
UNNOTICED = {0, 33}


def main(file: str, patterns: list[str]) -> int:
    reasons = dict(
        line.split(None, 1)
        for line in Path(file).read_text().splitlines()
        if line and not line.startswith("#")
    )
    results: dict[str, int] = {}
    for path in Path("mutants/src/socks_tunnel/protocol").glob("*.py.meta"):
        statuses = json.loads(path.read_text())["exit_code_by_key"]
        results |= {k.removeprefix(PREFIX): s for k, s in statuses.items() if s is not None}
    results = {k: s for k, s in results.items() if any(fnmatchcase(k, p) for p in patterns)}
    survivors = sorted(name for name, status in results.items() if status in UNNOTICED)
    strange = [name for name in survivors if not any(fnmatchcase(name, p) for p in reasons)]
    for module in sorted({name.partition(".")[0] for name in results}):
        mine = [name for name in results if name.startswith(f"{module}.")]
        left = [name for name in survivors if name.startswith(f"{module}.")]
        print(f"{module}: {len(mine)} mutants, {100 - 100 * len(left) / len(mine):.1f} % noticed")
    for name in strange:
        print(f"not noticed, and no reason in {file}: {name}")
    noticed = 1 - len(survivors) / len(results) if results else 0.0
    return int(bool(strange) or noticed < NOTICED_MIN)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
