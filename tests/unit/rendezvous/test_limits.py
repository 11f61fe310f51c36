"""Token buckets, and the door before the service."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.rendezvous import limits
from socks_tunnel.rendezvous.limits import Bucket, Buckets, Door, Ticket, network_of


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    bucket = Bucket(rate=2, burst=3, now=0)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(0.4)
    assert bucket.take(0.5)
    assert not bucket.take(0.5)
    assert [bucket.take(100) for _ in range(4)] == [True, True, True, False]


@given(st.lists(st.floats(0, 5), max_size=60))
def test_a_bucket_never_gives_more_than_burst_and_rate(steps: list[float]) -> None:
    bucket, now, taken = Bucket(rate=1, burst=5, now=0), 0.0, 0
    for step in steps:
        now += step
        taken += bucket.take(now)
    assert taken <= 5 + now + 1e-6


def test_a_clock_that_goes_back_gives_nothing() -> None:
    bucket = Bucket(rate=1, burst=1, now=10)
    assert bucket.take(10)
    assert not bucket.take(5)


def test_the_number_of_buckets_is_bounded() -> None:
    buckets = Buckets(1, 2, most=64)
    for key in range(1000):
        buckets.take(key, now=0)
        assert len(buckets) <= 64
    assert buckets.take("late", now=100)
    # Those that are full again went first.
    buckets = Buckets(1, 2, most=64)
    for key in range(64):
        buckets.take(key, now=0)
    buckets.take("busy", now=100)
    assert len(buckets) == 1


def test_a_flood_of_one_network_is_kept_out_and_others_come_in() -> None:
    door = Door()
    tickets = [door.admit("192.0.2.1", lambda: None, 0) for _ in range(40)]
    admitted = [ticket for ticket in tickets if ticket is not None]
    assert len(admitted) == limits.UNPROVED_PER_NETWORK_MAX
    assert door.counts["unproved"] == 8
    assert door.admit("192.0.2.2", lambda: None, 0) is not None
    for ticket in admitted:
        door.release(ticket)
        door.release(ticket)  # the second time does nothing
    assert door.admit("192.0.2.1", lambda: None, 0) is not None
    assert len(door) == 2


def test_connections_of_one_network_have_a_rate() -> None:
    door = Door()
    for _ in range(limits.CONNECTS_BURST):
        ticket = door.admit("192.0.2.1", lambda: None, 0)
        assert ticket is not None
        door.release(ticket)
    assert door.admit("192.0.2.1", lambda: None, 0) is None
    assert door.counts["rate"] == 1
    assert door.admit("192.0.2.1", lambda: None, 1) is not None


def test_when_it_is_full_the_oldest_has_to_go() -> None:
    door = Door()
    aborted: list[int] = []

    def come(number: int, now: float) -> Ticket | None:
        address = f"10.0.{number // 16}.{number % 16}"
        return door.admit(address, lambda: aborted.append(number), now)

    for number in range(limits.UNPROVED_MAX):
        assert come(number, number / limits.UNPROVED_MAX) is not None
    assert come(1000, limits.UNPROVED_TIME - 0.01) is None, "the oldest has hardly come"
    assert door.counts["full"] == 1
    assert come(1001, limits.UNPROVED_TIME) is not None
    assert come(1002, limits.UNPROVED_TIME + 0.01) is not None
    assert aborted == [0, 1]
    assert len(door) == limits.UNPROVED_MAX
    assert door.counts["flood"] == 2


def test_a_connection_has_longer_while_nobody_proves_a_key() -> None:
    door = Door()
    now = 0.0

    def come() -> Ticket | None:
        return door.admit("", lambda: None, now)

    def patience() -> float:
        """Returns how long those that are in have at least, in a door that was just filled anew."""
        nonlocal now
        began = now
        while come() is None:
            now += 0.25
        return now - began

    def refill() -> None:
        while come() is not None:
            pass

    refill()
    found = []
    for _ in range(5):
        found.append(patience())
        refill()
    assert found == [1, 2, 4, 8, 8] == [*found[:3], limits.UNPROVED_TIME_MAX, found[4]]
    # Each proof lowers it, though not below what that client has needed.
    for _ in range(40):
        door.proved(next(reversed(door._tickets)), now)
    refill()
    assert patience() == limits.UNPROVED_TIME
    refill()
    late = next(iter(door._tickets))
    door.proved(late, late.at + 1.5)
    door.proved(late, late.at + 100)  # the second time does nothing
    now = late.at
    refill()
    assert patience() == 2 * 1.5


def test_a_proxys_connection_counts_for_whom_it_names() -> None:
    door = Door()

    def through() -> Ticket:
        ticket = door.admit("", lambda: None, 0)
        assert ticket is not None
        return ticket

    moved = [door.move(through(), "2001:db8::1", 0) for _ in range(33)]
    assert moved == [True] * 32 + [False]
    assert not door.move(through(), "2001:db8::ffff", 0)
    assert door.move(through(), "2001:db8:0:1::1", 0)
    gone = through()
    door.release(gone)
    assert not door.move(gone, "192.0.2.1", 0)


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("", ""),
        ("garbage of a proxy", "garbage of a proxy"),
    ],
)
def test_networks(address: str, network: str) -> None:
    assert network_of(address) == network
