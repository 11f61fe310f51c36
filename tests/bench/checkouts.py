"""Two checkouts of this project beside each other, in turns: is the new one slower anywhere?

    python -m bench.checkouts OLD NEW [--rounds 7] [--seconds 3] [--only WORDS]

Each checkout has its own `.venv` (`make install`), and runs a gateway and an endpoint on loopback, with
one link and one worker a side. In each round every figure is taken of both, one right after the other,
and whoever goes first in one round goes last in the next. Printed are the medians, and the median of
the rounds' quotients, which is what counts on a machine that does other things too. A quotient over 1
is a faster new checkout, whether more or less of the figure is better.

The status is 1 if the new checkout is slower than the bar allows in any of them.
"""

import argparse
import collections
import contextlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.connections import CLIENTS, Side
from bench.load import Load

BAR = 0.97
"""What the new checkout may be slower: by three in a hundred."""

ROUND_TRIPS = 1000


@contextlib.contextmanager
def targets() -> Iterator[dict[str, int]]:
    """The target servers of the tests, in a process of their own; yields their ports by name."""
    program = Path(__file__).parents[1] / "support" / "targets.py"
    command = [sys.executable, str(program), "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            ports: dict[str, int] = json.loads(process.stdout.readline())
            yield ports
        finally:
            process.stdin.close()  # which ends it


def measures(seconds: float) -> dict[str, Callable[[Load], float]]:
    """What is measured, by its name, so that more is better."""
    return {
        "download, Mbit/s": lambda load: load.throughput("down", 1, seconds)["mbps"],
        "upload, Mbit/s": lambda load: load.throughput("up", 1, seconds)["mbps"],
        "8 downloads, Mbit/s": lambda load: load.throughput("down", 8, seconds)["mbps"],
        "64-byte round trips a second": lambda load: (
            1e3 / load.round_trip(ROUND_TRIPS, 64)["p50_ms"]
        ),
        f"connections a second, {CLIENTS} clients": (
            lambda load: load.opens(CLIENTS, seconds)["per_second"]
        ),
        "UDP echoes a second, 1 outstanding": (
            lambda load: load.datagrams(64, 1, seconds)["per_second"]
        ),
        "UDP echoes a second, 16 outstanding": (
            lambda load: load.datagrams(64, 16, seconds)["per_second"]
        ),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench.checkouts")
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--only", default="", help="only figures whose name has this in it")
    arguments = parser.parse_args()
    figures: dict[str, list[tuple[float, float]]] = collections.defaultdict(list)
    with contextlib.ExitStack() as held:
        ports = held.enter_context(targets())
        sides = [Side(each, held, ports) for each in (arguments.old, arguments.new)]
        for number in range(-1, arguments.rounds):  # the first warms up
            for name, measure in measures(arguments.seconds).items():
                if arguments.only not in name:
                    continue
                taken = {
                    side: measure(side.load) for side in (sides if number % 2 else reversed(sides))
                }
                if number >= 0:
                    figures[name].append((taken[sides[0]], taken[sides[1]]))
    print(f"{'':<36} {'old':>8} {'new':>8} {'new/old':>8} {'rounds':>14}")
    slower = []
    for name, pairs in figures.items():
        quotients = [b / a for a, b in pairs]
        old, new = (statistics.median(values) for values in zip(*pairs, strict=True))
        quotient = statistics.median(quotients)
        print(
            f"{name:<36} {old:8.0f} {new:8.0f} {quotient:8.2f} "
            f"{min(quotients):6.2f} to {max(quotients):4.2f}"
        )
        if quotient < BAR:
            slower.append(name)
    if slower:
        print("slower than the bar allows:", "; ".join(slower))
    return int(bool(slower))


if __name__ == "__main__":
    sys.exit(main())
