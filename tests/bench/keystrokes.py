"""Where the time of keystrokes goes on a path that is full both ways, in virtual time.

    python -m bench.keystrokes [--rate 1] [--seconds 30] [--seeds 3] [--worst 10] [--shared]

The path and its load are those of :mod:`support.two_ways`.
"""

import argparse
import math
from functools import partial
from typing import Final

from support.sctp_network import run_virtual
from support.two_ways import both_ways

NAMES: Final = (
    "total",
    "send1",
    "queue1",
    "resend1",
    "order1",
    "send2",
    "queue2",
    "resend2",
    "order2",
)
"""Milliseconds in all, and of them there and back: in the sender, in the path's queue, until it was sent
again, and until what was before it had come."""


def main() -> None:
    """Prints the profile."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--worst", type=int, default=0)
    parser.add_argument("--shared", action="store_true", help="in lanes of transfers")
    arguments = parser.parse_args()
    scene = partial(both_ways, arguments.rate, arguments.seconds, shared=arguments.shared)
    results = [run_virtual(partial(scene, s)) for s in range(arguments.seeds)]
    rows = sorted((r[0] for one in results for r in one["rows"]), key=lambda r: r[0])
    print("%", *NAMES)
    for share in (0.5, 0.9, 0.99, 1.0):
        at = [
            sorted(r[i] for r in rows)[max(math.ceil(share * len(rows)) - 1, 0)] for i in range(9)
        ]
        print(f"{share:.2f}", *(f"{v:.0f}" for v in at))
    for row in rows[len(rows) - arguments.worst :]:
        print("  ", *(f"{v:.0f}" for v in row))
    for one in results:
        print(
            f"{arguments.rate:g} Mbit/s down {one['down']:.2f} up {one['up']:.2f}"
            f" speech lost {one['lost']}/{one['spoken']} drops up,down {one['drops']}"
        )


if __name__ == "__main__":
    main()
