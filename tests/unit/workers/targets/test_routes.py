"""Where datagrams go: the race, the turns, the time of an answer, and who may answer."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from socks_tunnel.protocol.addresses import HostPort, IPAddress
from socks_tunnel_workers.targets.routes import (
    ATTEMPT_DELAY,
    KEPT_DATAGRAM_MAX,
    KEPT_MAX,
    RACE_SECONDS,
    RACERS_MAX,
    REACHED_MAX,
    ROUTES_MAX,
    TURN_SECONDS,
    Filtering,
    Refusal,
    Route,
    Routes,
)

SIX, FOUR, MORE = (ip_address(text) for text in ("2001:db8::1", "192.0.2.1", "192.0.2.2"))
HERE = HostPort("a.test", 53)


def route(*addresses: IPAddress, expires: float | None = None) -> Route:
    return Route(addresses, now=0, expires=expires, name="a.test")


# --- one destination ----------------------------------------------------------------------------


def test_one_address_gets_everything() -> None:
    only = route(FOUR)
    assert not only.racing
    for now in range(100):
        assert only.send(b"x", now) == (FOUR,)
    assert only.attempt(0) is None


def test_the_next_address_gets_what_the_first_got_and_the_first_answer_wins() -> None:
    both = route(SIX, FOUR)
    assert both.racing
    assert both.send(b"1", 0) == (SIX,)
    assert both.send(b"2", 0.1) == (SIX,)
    assert both.attempt(ATTEMPT_DELAY) == (FOUR, [b"1", b"2"])
    assert both.send(b"3", 0.3) == (SIX, FOUR)
    both.answered(FOUR, 0.31)
    assert both.send(b"4", 0.4) == (FOUR,)
    assert both.attempt(0.5) is None
    # The loser answers late: nothing changes.
    both.answered(SIX, 0.41)
    assert both.send(b"5", 0.42) == (FOUR,)


def test_a_race_has_few_runners_and_keeps_few_datagrams() -> None:
    addresses = [ip_address(f"192.0.2.{n}") for n in range(9)]
    many = route(*addresses)
    for n in range(KEPT_MAX + 3):
        many.send(b"%d" % n, 0)
    many.send(bytes(KEPT_DATAGRAM_MAX + 1), 0)
    attempts = [many.attempt(0.25), many.attempt(0.5), many.attempt(0.75)]
    kept = [b"%d" % n for n in range(KEPT_MAX)]
    assert attempts == [(addresses[1], kept), (addresses[2], kept), None]
    assert many.send(b"x", 1) == tuple(addresses[:RACERS_MAX])


def test_a_race_ends_without_an_answer_and_every_address_has_its_turn() -> None:
    three = route(SIX, FOUR, MORE)
    three.send(b"x", 0)
    assert three.attempt(RACE_SECONDS) is None
    turns = [three.send(b"x", RACE_SECONDS + n * TURN_SECONDS) for n in range(6)]
    assert set(turns) == {(SIX,), (FOUR,), (MORE,)}
    assert all(turns[n] != turns[n + 1] for n in range(5))
    # Whoever answers keeps the turn.
    (current,) = turns[-1]
    now = RACE_SECONDS + 5 * TURN_SECONDS
    for n in range(20):
        three.answered(current, now + n)
        assert three.send(b"x", now + n) == (current,)


def test_silence_of_the_sender_is_no_silence_of_the_target() -> None:
    both = route(SIX, FOUR)
    both.send(b"x", 0)
    both.answered(SIX, 0.1)
    assert both.send(b"x", 1000) == (SIX,)
    assert both.send(b"x", 1000.1) == (SIX,)


def test_an_address_that_worked_yields_when_it_falls_silent() -> None:
    both = route(SIX, FOUR)
    both.send(b"x", 0)
    both.answered(SIX, 0.1)
    assert both.send(b"x", 10) == (SIX,)
    assert both.send(b"x", 10 + TURN_SECONDS) == (FOUR,)
    both.answered(FOUR, 12.5)
    assert both.send(b"x", 20) == (FOUR,)


def test_an_address_without_a_route_yields_at_once() -> None:
    both = route(SIX, FOUR)
    both.send(b"x", 0)
    both.answered(SIX, 0.1)
    both.send(b"x", 1)
    both.failed(SIX, 1)
    assert both.send(b"x", 1.1) == (FOUR,)


def test_a_fresh_answer_with_the_address_in_use_changes_nothing() -> None:
    both = route(SIX, FOUR, expires=5)
    both.send(b"x", 0)
    both.answered(FOUR, 0.1)
    assert not both.expired(4.9)
    assert both.expired(5)
    assert both.renew([MORE, FOUR], expires=10)
    assert not both.expired(9)
    assert both.send(b"x", 6) == (FOUR,)
    assert not both.renew([SIX], expires=20)
    assert both.current == FOUR
    assert both.expired(10), "nothing was changed"


def test_a_race_goes_on_over_a_fresh_answer() -> None:
    both = route(SIX, FOUR, expires=1)
    both.send(b"x", 0)
    assert both.renew([SIX, MORE], expires=2)
    assert both.attempt(0.3) == (MORE, [b"x"])
    assert both.renew([SIX], expires=3)
    assert not both.racing
    assert both.send(b"x", 0.4) == (SIX,)


def test_whatever_happens_a_datagram_goes_somewhere() -> None:
    rng = random.Random(6724)  # any sequence will do, the same one each time
    pool = [ip_address(f"192.0.2.{n}") for n in range(5)]
    for _ in range(300):
        now = 0.0
        some = route(*rng.sample(pool, rng.randint(1, 5)), expires=1)
        for _ in range(60):
            now += rng.choice([0.0, 0.1, 1.0, 5.0])
            match rng.randrange(5):
                case 0:
                    some.answered(rng.choice(pool), now)
                case 1:
                    some.failed(rng.choice(some.addresses), now)
                case 2:
                    some.attempt(now)
                case 3:
                    some.renew(rng.sample(pool, rng.randint(1, 5)), expires=now + 1)
                case _:
                    pass
            targets = some.send(b"x", now)
            assert 1 <= len(targets) <= RACERS_MAX
            assert len(set(targets)) == len(targets)
            assert set(targets) <= set(some.addresses)
            assert some.current in some.addresses


# --- all destinations ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("filtering", "other_port", "other_host"),
    [
        ("endpoint-independent", True, True),
        ("address-dependent", True, False),
        ("address-and-port-dependent", False, False),
    ],
)
def test_who_may_answer(filtering: Filtering, other_port: bool, other_host: bool) -> None:
    routes = Routes(filtering)
    both = route(SIX, FOUR)
    routes.put(HERE, both)
    assert routes.admits(str(FOUR), 53) is (filtering == "endpoint-independent"), "nothing was sent"
    routes.reached(both, FOUR, 53)
    assert routes.admits(str(FOUR), 53)
    assert routes.admits(str(SIX), 53) is (filtering == "endpoint-independent")
    assert routes.admits(str(FOUR), 54) is other_port
    assert routes.admits(str(MORE), 53) is other_host
    assert routes.answering(str(FOUR), 53) == [both]
    assert not routes.answering(str(FOUR), 54)


def test_an_address_that_two_destinations_share_stays_while_one_is_left() -> None:
    routes = Routes("address-dependent")
    one, two = route(FOUR), route(FOUR)
    other = HostPort("b.test", 53)
    routes.put(HERE, one)
    routes.put(other, two)
    for either in (one, two):
        routes.reached(either, FOUR, 53)
        routes.reached(either, FOUR, 53)
    routes.forget(HERE)
    assert routes.admits(str(FOUR), 53)
    assert routes.answering(str(FOUR), 53) == [two]
    routes.forget(other)
    assert not routes.admits(str(FOUR), 53)
    assert not routes.answering(str(FOUR), 53)
    routes.forget(other)


def test_refusals_end_and_can_be_forgotten() -> None:
    routes = Routes("address-dependent")
    routes.put(HERE, Refusal("unresolved", 2))
    assert routes.get(HERE, 1.9) == Refusal("unresolved", 2)
    assert routes.get(HERE, 2) is None
    kept = route(FOUR)
    routes.put(HERE, kept)
    routes.put(HostPort("b.test", 1), Refusal("policy", float("inf")))
    routes.forget_refusals()
    assert routes.destinations() == [HERE]
    assert routes.get(HERE, 99) is kept


def test_the_least_recently_used_destination_is_forgotten() -> None:
    routes = Routes("address-dependent")
    first = route(FOUR)
    routes.put(HERE, first)
    routes.reached(first, FOUR, 53)
    for n in range(ROUTES_MAX - 1):
        routes.put(HostPort(f"{n}.test", 1), Refusal("policy", 1e9))
    assert routes.get(HERE, 0) is first  # used: so another one goes first
    routes.put(HostPort("one-more.test", 1), Refusal("policy", 1e9))
    assert len(routes) == ROUTES_MAX
    assert routes.get(HostPort("0.test", 1), 0) is None
    assert routes.get(HERE, 0) is first
    for n in range(ROUTES_MAX):
        routes.put(HostPort(f"again-{n}.test", 1), Refusal("policy", 1e9))
    assert not routes.admits(str(FOUR), 53)


@pytest.mark.parametrize("filtering", ["address-dependent", "address-and-port-dependent"])
def test_a_name_whose_addresses_change_for_ever_takes_no_more_room(filtering: Filtering) -> None:
    """Its server names another address each second, of which none answers, for hours."""
    routes = Routes(filtering)
    destination = HostPort("x.example", 53)
    addresses = [ip_address(0x0A000000 + number) for number in range(3 * REACHED_MAX)]
    entry = route(*addresses[:2], expires=1)
    routes.put(destination, entry)
    for address in addresses:
        routes.reached(entry, address, 53)
    assert len(entry.reached) == REACHED_MAX
    assert [routes.admits(str(address), 53) for address in addresses] == [
        True,  # it is in use
        *[False] * (2 * REACHED_MAX),
        *[True] * (REACHED_MAX - 1),
    ]
    assert [*routes.answering(str(addresses[-1]), 53)] == [entry]
    assert not routes.answering(str(addresses[1]), 53)
    routes.forget(destination)
    assert not any(routes.admits(str(address), 53) for address in addresses)
