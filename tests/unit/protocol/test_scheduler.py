"""What a worker transmits next: datagrams, then flows in turn, within its credit."""

import math

import pytest

from socks_tunnel.protocol.scheduler import DATAGRAM_AGE_MAX, DATAGRAM_BYTES_MAX, Scheduler


def test_is_idle_while_nothing_waits() -> None:
    scheduler: Scheduler[str] = Scheduler(100)
    idle = [scheduler.idle]
    scheduler.wait("a")
    idle.append(scheduler.idle)
    scheduler.next_flow()
    idle.append(scheduler.idle)
    scheduler.queue_datagram(b"x", 0.0)
    idle.append(scheduler.idle)
    scheduler.next_datagram(0.0)
    idle.append(scheduler.idle)

    assert idle == [True, False, True, False, True]


def test_gives_nothing_without_credit() -> None:
    scheduler: Scheduler[str] = Scheduler(0)
    scheduler.wait("a")
    scheduler.queue_datagram(b"x", 0.0)

    assert scheduler.next_datagram(0.0) is None
    assert scheduler.next_flow() is None

    scheduler.grant(1)
    assert scheduler.next_datagram(0.0) == b"x"


def test_control_messages_may_take_the_credit_below_zero() -> None:
    scheduler: Scheduler[str] = Scheduler(10)
    scheduler.wait("a")
    scheduler.spend(30)
    assert scheduler.credit == -20

    scheduler.grant(20)
    assert scheduler.next_flow() is None
    scheduler.grant(1)
    assert scheduler.next_flow() == "a"


# --- datagrams --------------------------------------------------------------------------------


def test_datagrams_leave_in_order_and_spend_their_length() -> None:
    scheduler: Scheduler[str] = Scheduler(10)
    for message in (b"first", b"second", b"third"):
        scheduler.queue_datagram(message, 0.0)

    assert scheduler.next_datagram(0.0) == b"first"
    assert scheduler.credit == 5
    assert scheduler.next_datagram(0.0) == b"second"
    assert scheduler.credit == -1
    assert scheduler.next_datagram(0.0) is None
    assert scheduler.expired == scheduler.overflowed == 0


def test_a_datagram_leaves_within_50_ms_or_never() -> None:
    scheduler: Scheduler[str] = Scheduler(100)
    scheduler.queue_datagram(b"in time", 0.0)
    scheduler.queue_datagram(b"late", 0.0)

    assert scheduler.next_datagram(DATAGRAM_AGE_MAX) == b"in time"
    assert scheduler.next_datagram(math.nextafter(DATAGRAM_AGE_MAX, 1)) is None
    assert scheduler.expired == 1
    assert pytest.approx(0.050) == DATAGRAM_AGE_MAX


def test_expired_datagrams_go_even_without_credit_and_cost_none() -> None:
    scheduler: Scheduler[str] = Scheduler(0)
    scheduler.queue_datagram(b"late", 0.0)

    assert scheduler.next_datagram(1.0) is None
    assert scheduler.idle
    assert (scheduler.expired, scheduler.credit) == (1, 0)


def test_beyond_the_limit_the_oldest_datagrams_are_dropped() -> None:
    scheduler: Scheduler[str] = Scheduler(DATAGRAM_BYTES_MAX * 2)
    size = DATAGRAM_BYTES_MAX // 8
    for number in range(10):
        scheduler.queue_datagram(bytes((number,)) * size, 0.0)

    left = []
    while (message := scheduler.next_datagram(0.0)) is not None:
        left.append(message[0])

    assert left == list(range(2, 10))
    assert scheduler.overflowed == 2


def test_the_limit_counts_only_what_still_waits() -> None:
    scheduler: Scheduler[str] = Scheduler(DATAGRAM_BYTES_MAX * 100)
    size = DATAGRAM_BYTES_MAX // 2
    for turn in range(10):
        scheduler.queue_datagram(bytes(size), float(turn))
        scheduler.queue_datagram(bytes(size), float(turn))
        if turn % 2:
            assert scheduler.next_datagram(float(turn)) is not None
            assert scheduler.next_datagram(float(turn)) is not None
        else:
            assert scheduler.next_datagram(turn + 0.9) is None  # both expired

    assert scheduler.overflowed == 0
    assert scheduler.expired == 10


# --- flows ------------------------------------------------------------------------------------


def test_flows_go_in_turn() -> None:
    scheduler: Scheduler[str] = Scheduler(1_000_000)
    for flow in "abc":
        scheduler.wait(flow)
    order = ""
    for _ in range(9):
        turn = scheduler.next_flow()
        assert turn is not None
        order += turn
        scheduler.wait(turn)  # it has more to send

    assert order == "abcabcabc"


def test_a_flow_waits_once() -> None:
    scheduler: Scheduler[str] = Scheduler(100)
    scheduler.wait("a")
    scheduler.wait("b")
    scheduler.wait("a")

    assert [scheduler.next_flow() for _ in range(3)] == ["a", "b", None]


def test_a_cancelled_flow_has_no_turn() -> None:
    scheduler: Scheduler[str] = Scheduler(100)
    scheduler.wait("a")
    scheduler.wait("b")
    scheduler.cancel("a")
    scheduler.cancel("never there")

    assert [scheduler.next_flow() for _ in range(2)] == ["b", None]
    scheduler.wait("a")
    assert scheduler.next_flow() == "a"
