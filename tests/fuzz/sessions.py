"""Random walks through the state machine of tests/property/test_session.py, many of them.

    python -m fuzz.sessions COUNT [FIRST_SEED]

Hypothesis spends nine tenths of its time on what shrinks a failure later. A walk takes the same rules
and checks the same invariants, draws by a seed, and is thirty times as fast. A walk that fails is repeated by its seed, and its steps are printed; the seed then becomes a
line of :data:`FOUND`, which `make test` walks each time.
"""

import multiprocessing
import os
import random
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from property.test_session import TwoSessions

STEPS: Final = 100
"""Steps of one walk, as Hypothesis takes them in its deep profile."""

BLOCK: Final = 250
"""Walks between two reports of a process."""

FOUND: Final[tuple[int, ...]] = ()
"""Seeds of walks that failed once."""

EDGES: Final = (0, 1, 2, 299, 300, 301, 699, 700, 701, 2999, 3000)
"""Sizes at which something changes: pieces, windows, the size of a message."""

Step = Callable[[random.Random, TwoSessions], tuple[str, tuple[Any, ...]] | None]


def _size(rng: random.Random, least: int, most: int) -> int:
    """Returns a size, often one at an edge or a small one."""
    kind = rng.random()
    if kind < 0.3:
        return min(max(rng.choice(EDGES), least), most)
    return rng.randint(least, min(most, least + 30) if kind < 0.6 else most)


def _data(rng: random.Random, least: int, most: int) -> bytes:
    return rng.randbytes(_size(rng, least, most))


def _side(rng: random.Random) -> int:
    return rng.randint(0, 1)


def _open(rng: random.Random, two: TwoSessions) -> tuple[str, tuple[Any, ...]] | None:
    session = two.sides[0].session
    if len(session.flows) >= 4 or not session.open_to_send:
        return None
    return "open_flow", (_data(rng, 0, 4000),)


STEPS_OF: Final[dict[str, Step]] = {
    "link": lambda _, two: None if two.linked else ("link", ()),
    "cut": lambda rng, two: ("cut", (_side(rng),)) if two.linked else None,
    "move": lambda rng, two: ("move", (_side(rng),)) if two.linked else None,
    "hand_over": lambda rng, _: ("hand_over", (_side(rng), rng.random() < 0.5)),
    "deliver": lambda rng, _: ("deliver", (_side(rng), rng.randint(1, 20))),
    "deliver_resume": lambda rng, _: ("deliver_resume", (_side(rng),)),
    "grant": lambda rng, _: ("grant", (_side(rng), _size(rng, 1, 3000))),
    "open_flow": _open,
    "write": lambda rng, _: ("write", (_side(rng), rng.randint(0, 99), _data(rng, 1, 5000))),
    "finish": lambda rng, _: ("finish", (_side(rng), rng.randint(0, 99))),
    "limit_reading": lambda rng, _: (
        "limit_reading",
        (_side(rng), rng.randint(0, 99), _size(rng, 0, 4000)),
    ),
}
"""How each rule of the machine is drawn; None where its precondition does not hold."""


def walk(seed: int, tell: Callable[[str], object] | None = None) -> None:
    """Walks once.

    Each walk prefers some rules and leaves out others, which reaches states that an even choice
    does not (swarm testing: Groce and others, ISSTA 2012). `tell` is given each step before it is taken.

    Raises:
        AssertionError: An invariant does not hold, or at the end something was lost or is kept.
    """
    rng = random.Random(seed)
    two = TwoSessions()
    names = list(STEPS_OF)
    weights = [rng.choice((0, 1, 1, 4)) if name != "deliver" else 4 for name in names]
    least = 1 if rng.random() < 0.05 else 100  # a byte at a time takes long
    two.begin(windows=(_size(rng, least, 3000), _size(rng, least, 3000)))
    for _ in range(STEPS):
        step = STEPS_OF[rng.choices(names, weights)[0]](rng, two)
        if step is None:
            continue
        name, arguments = step
        if tell is not None:
            tell(f"{name}{arguments!r:.100}")
        getattr(two, name)(*arguments)
        two.what_came_out_went_in()
        two.windows_hold()
    two.teardown()


def _block(first: int) -> tuple[int, str] | None:
    """Walks a block; returns the seed and the error of the first walk that fails."""
    for seed in range(first, first + BLOCK):
        try:
            walk(seed)
        except Exception:  # noqa: BLE001 - whatever it is, it was found
            return seed, traceback.format_exc()
    return None


def main(count: int, first: int) -> int:
    """Walks `count` times on all cores; returns the exit status."""
    began = time.monotonic()
    done = 0
    with multiprocessing.Pool(os.cpu_count()) as pool:
        for found in pool.imap_unordered(_block, range(first, first + count, BLOCK)):
            if found is not None:
                seed, error = found
                print(f"the walk of seed {seed} fails:\n{error}its steps:", flush=True)
                try:
                    walk(seed, print)
                except Exception as repeated:  # noqa: BLE001 - it is printed above
                    print(f"{type(repeated).__name__}: add {seed} to FOUND in {__file__}")
                return 1
            done += BLOCK
            if done % (40 * BLOCK) == 0:
                print(f"{done} walks in {time.monotonic() - began:.0f} s", flush=True)
    print(f"sessions: {done} walks of {STEPS} steps from seed {first} on, none failed")
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
