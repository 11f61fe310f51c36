"""Has mutmut write the mutated sources of the tree in which it runs into its folder mutants.

Only that: tests/mutants/forked.py tries the mutants. These functions are the first half of `mutmut run`.
"""

import os

from mutmut import __main__ as mutmut


def main() -> None:
    os.environ["MUTANT_UNDER_TEST"] = "mutant_generation"
    stats = mutmut.create_mutants(os.cpu_count() or 1)
    print(f"sources: {stats.mutated} mutated, {stats.unmodified} as before")


if __name__ == "__main__":
    main()
