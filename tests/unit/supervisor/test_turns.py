"""Which link is given credit, and how much of it in one turn of the event loop."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socks_tunnel.supervisor.turns import ALONE_AFTER, SERVICE_BYTES, TURN_BYTES, Turns


class Link:
    """A link that sends in the next turn what it was given, and then wants as much again."""

    def __init__(self, weight: int = 1, *, wants: int = 1 << 20) -> None:
        self.weight = weight
        self.finish = 0.0
        self.waiting = False
        self.wants = wants
        self.held = 0
        self.given = 0

    def serve(self, most: int) -> int:
        amount = min(self.wants - self.held, most)
        self.held += amount
        self.given += amount
        return amount


class Loop:
    """The turns of an event loop."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.turns = Turns(self.calls.append)

    def turn(self) -> None:
        calls, self.calls[:] = list(self.calls), []
        for call in calls:
            call()

    def run(self, links: list[Link], turns: int) -> int:
        """Lets what was given leave and be wanted again; returns the most that one turn gave."""
        largest = 0
        for _ in range(turns):
            before = sum(link.given for link in links)
            for link in links:
                link.held = 0
                self.turns.want(link)
            self.turn()
            largest = max(largest, sum(link.given for link in links) - before)
        return largest


def test_a_link_that_is_alone_has_what_it_wants() -> None:
    loop, link = Loop(), Link(wants=10 * TURN_BYTES)
    for number in range(1, ALONE_AFTER + 1):
        link.held = 0
        loop.turns.want(link)
        assert link.given == (number - 1) * link.wants, "another one may want some in this turn"
        loop.turn()
        assert link.given == number * link.wants
    link.held = 0
    loop.turns.want(link)
    assert link.given == (ALONE_AFTER + 1) * link.wants, "no other one did for so long"
    assert loop.calls == []


def test_a_link_is_not_alone_once_another_wants_credit() -> None:
    loop, links = Loop(), [Link() for _ in range(2)]
    loop.run(links[:1], 10)
    loop.run(links, 1)
    alone = links[0].given
    assert loop.run(links, 400) <= TURN_BYTES + SERVICE_BYTES
    assert abs((links[0].given - alone) / links[1].given - 1) < 0.1


class Broken(Link):
    """A link that meets a bug once."""

    def serve(self, most: int) -> int:
        if not self.given:
            self.given = 1
            raise ZeroDivisionError
        return super().serve(most)


def test_a_bug_of_one_link_does_not_leave_the_others_without_credit() -> None:
    loop, broken, link = Loop(), Broken(), Link(wants=100)
    loop.turns.want(broken)
    loop.turns.want(link)
    with pytest.raises(ZeroDivisionError):
        loop.turn()
    loop.turn()
    assert link.given == 100
    loop.turns.want(broken)
    loop.turn()
    assert broken.given > 1


def test_a_link_waits_once() -> None:
    loop, link = Loop(), Link(wants=100)
    for _ in range(3):
        loop.turns.want(link)
    assert len(loop.calls) == 1
    loop.turn()
    assert link.given == 100


def test_what_a_turn_does_not_give_the_next_one_does() -> None:
    loop, links = Loop(), [Link(wants=2 * TURN_BYTES) for _ in range(2)]
    for link in links:
        loop.turns.want(link)
    loop.turn()
    assert sum(link.given for link in links) == TURN_BYTES
    assert links[0].given == links[1].given
    for _ in range(4):
        loop.turn()
    assert [link.given for link in links] == [2 * TURN_BYTES] * 2
    assert loop.calls == []


@settings(max_examples=50)
@given(weights=st.lists(st.integers(1, 100), min_size=2, max_size=6))
def test_links_that_want_more_share_by_their_weights(weights: list[int]) -> None:
    loop, links = Loop(), [Link(weight) for weight in weights]
    turns = 40 * sum(weights)
    assert loop.run(links, turns) <= TURN_BYTES + SERVICE_BYTES
    for link in links:
        share = link.given / sum(each.given for each in links)
        assert abs(share * sum(weights) / link.weight - 1) < 0.1


@settings(max_examples=50)
@given(heavy=st.integers(1, 100), wants=st.integers(0, TURN_BYTES // 4))
def test_what_one_does_not_want_the_other_has(heavy: int, wants: int) -> None:
    loop, links = Loop(), [Link(heavy, wants=wants), Link()]
    loop.run(links, 100)
    assert links[0].given == 100 * wants
    assert links[1].given >= 100 * (TURN_BYTES - wants - SERVICE_BYTES)


def test_a_link_that_was_quiet_has_saved_nothing() -> None:
    loop, links = Loop(), [Link(), Link()]
    loop.run(links[:1], 100)
    before = links[0].given
    loop.run(links, 400)
    assert abs((links[0].given - before) / links[1].given - 1) < 0.1


def test_forty_links_of_which_ten_are_busy() -> None:
    """An idle one is served before any busy one is served twice, and the busy ones share."""
    loop = Loop()
    busy = [Link(wants=SERVICE_BYTES + 9_000 * number) for number in range(10)]
    idle = [Link(wants=1_100) for _ in range(30)]
    for number in range(300):
        asking = idle[number % len(idle)]
        asking.held = 0
        loop.turns.want(asking)
        before, had = [link.given for link in busy], asking.given
        turns = 0
        while asking.given == had:
            assert loop.run(busy, 1) <= TURN_BYTES + SERVICE_BYTES
            turns += 1
            assert turns <= 10 * SERVICE_BYTES // TURN_BYTES + 1
        # The turn in which it is served may go on with others.
        most = SERVICE_BYTES + TURN_BYTES
        assert all(link.given - was <= most for link, was in zip(busy, before, strict=True))
    mean = sum(link.given for link in busy) / len(busy)
    assert mean > 50 * SERVICE_BYTES
    assert all(abs(link.given / mean - 1) < 0.2 for link in busy)
    assert {link.given for link in idle} == {10 * 1_100}
