"""The first flows by something, found a few at a time."""

import random
from collections.abc import Callable, Iterable
from typing import Any, cast

import pytest

from socks_tunnel_workers.relay.ranking import FLOWS_PER_TURN, rank
from socks_tunnel_workers.relay.session import Flow


class Carried:
    """What of a flow is looked at."""

    def __init__(self, up: int, down: int = 0, started: float = 0.0) -> None:
        self.up = up
        self.down = down
        self.started = started
        self.ranked = 0
        self.ended = False


class Loop:
    """An event loop whose turns the test counts."""

    def __init__(self) -> None:
        self.later: list[Callable[[], object]] = []
        self.turns = 1

    def call_soon(self, callback: Callable[[], object]) -> None:
        self.later.append(callback)

    def run(self) -> None:
        while self.later:
            self.turns += 1
            self.later.pop(0)()


def ranked(flows: Iterable[Carried], limit: int, by: str) -> tuple[list[Carried], int]:
    loop: Any = Loop()
    given: list[list[Carried]] = []
    rank(
        loop,
        cast("list[Flow]", list(flows)),
        limit,
        by,
        lambda best: given.append(cast("list[Carried]", list(best))),
    )
    loop.run()
    (best,) = given
    return best, loop.turns


@pytest.mark.parametrize("number", [0, 1, FLOWS_PER_TURN, FLOWS_PER_TURN + 1, 5000])
def test_the_first_are_found_in_turns(number: int) -> None:
    flows = [Carried(up, up // 3) for up in range(number)]
    random.Random(7).shuffle(flows)
    best, turns = ranked(flows, 20, "total")
    assert [flow.up for flow in best] == list(range(number))[::-1][:20]
    assert turns == max(1, -(-number // FLOWS_PER_TURN))


def test_by_age() -> None:
    best, _ = ranked([Carried(9, started=3.0), Carried(1, started=1.0), Carried(5)], 2, "age")
    assert [flow.up for flow in best] == [5, 1]


def test_by_rate_is_by_what_came_since_the_last_time() -> None:
    old, new, idle = Carried(10_000), Carried(10), Carried(500)
    assert ranked([idle, old, new], 9, "rate")[0] == [old, idle, new]
    old.up += 1
    new.down += 20
    ranked([idle, old, new], 9, "total")  # tells nothing of this
    assert ranked([idle, old, new], 2, "rate")[0] == [new, old]


def test_what_ended_meanwhile_is_left_out() -> None:
    flows = [Carried(up) for up in range(FLOWS_PER_TURN + 1)]
    loop: Any = Loop()
    given: list[Flow] = []
    rank(loop, cast("list[Flow]", list(flows)), 2, "total", given.extend)
    flows[-1].ended = True
    loop.run()
    assert [flow.up for flow in given] == [FLOWS_PER_TURN - 1]
