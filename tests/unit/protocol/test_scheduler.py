"""What a worker transmits next: datagrams, quiet flows, then bulk in turn, within its credit."""

import math
import time
import weakref
from typing import Any

import pytest

from socks_tunnel.protocol.scheduler import (
    CHUNK_START,
    DATAGRAM_AGE_MAX,
    DATAGRAM_BYTES_MAX,
    DATAGRAM_OVERDRAFT,
    DEMAND_HOLD,
    QUIET_LEAD,
    QUIET_OVERDRAFT,
    QUIET_TURN,
    BusyFlows,
    Scheduler,
)

FLOOR = Scheduler[Any]().floor


class Flow:
    def __init__(self, name: str) -> None:
        self.name = name
        self.served = 0
        self.queued = 0


A, B, C = "a", "b", "c"


def flows() -> tuple[Flow, Flow, Flow]:
    return Flow(A), Flow(B), Flow(C)


def takes(scheduler: Scheduler[Flow]) -> bool:
    return scheduler.takes_datagram


def wanted(scheduler: Scheduler[Flow]) -> bool:
    return scheduler.wanted


def names(scheduler: Scheduler[Flow], count: int) -> list[str | None]:
    turns = [scheduler.next_flow() for _ in range(count)]
    return [None if flow is None else flow.name for flow in turns]


def test_is_idle_while_nothing_waits() -> None:
    scheduler: Scheduler[Flow] = Scheduler(100)
    idle = [scheduler.idle]
    scheduler.wait(Flow(A))
    idle.append(scheduler.idle)
    scheduler.next_flow()
    idle.append(scheduler.idle)
    scheduler.queue_datagram(b"x", 0.0)
    idle.append(scheduler.idle)
    scheduler.next_datagram(0.0)
    idle.append(scheduler.idle)
    assert idle == [True, False, True, False, True]


def test_gives_nothing_without_credit() -> None:
    scheduler: Scheduler[Flow] = Scheduler(FLOOR)
    scheduler.wait(Flow(A))
    scheduler.queue_datagram(b"x", 0.0)
    assert wanted(scheduler)
    assert scheduler.next_datagram(0.0) is None
    assert scheduler.next_flow() is None
    scheduler.credit += 1
    assert scheduler.next_datagram(0.0) == b"x"
    assert scheduler.next_flow() is None
    scheduler.credit = 1
    assert not wanted(scheduler)
    assert names(scheduler, 1) == [A]


# --- datagrams --------------------------------------------------------------------------------


def test_datagrams_leave_in_order_and_spend_their_length() -> None:
    scheduler: Scheduler[Flow] = Scheduler(10)
    for message in (b"first", b"second", b"third"):
        scheduler.queue_datagram(message, 0.0)
    assert scheduler.next_datagram(0.0) == b"first"
    assert scheduler.credit == 5
    assert scheduler.next_datagram(0.0) == b"second"
    assert scheduler.credit == -1
    assert scheduler.next_datagram(0.0) == b"third"
    assert scheduler.next_datagram(0.0) is None
    assert scheduler.expired == scheduler.overflowed == 0


def test_datagrams_get_their_share_of_a_link_that_bulk_has_used_up() -> None:
    scheduler: Scheduler[Flow] = Scheduler(0)
    assert takes(scheduler)
    scheduler.credit = FLOOR
    assert not takes(scheduler)
    scheduler.credit = 100
    scheduler.queue_datagram(b"before it", 0.0)
    assert not takes(scheduler), "it would overtake one that waits"


def in_a_round(scheduler: Scheduler[Flow]) -> Flow:
    """Stops between the turns of B, which has had it, and A: virtual time goes on after both."""
    bulk, other, quiet = flows()
    for flow in (bulk, other):
        scheduler.wait(flow)
    serve(scheduler, bulk, 1_100)
    serve(scheduler, other, 1_100)
    serve(scheduler, bulk, 1_100)
    return quiet


@pytest.mark.parametrize(("lead", "first"), [(QUIET_LEAD, C), (QUIET_LEAD + 1, B)])
def test_what_a_quiet_flow_sent_while_virtual_time_stood_still_does_not_make_it_busy(
    lead: int, first: str
) -> None:
    scheduler: Scheduler[Flow] = Scheduler(1_000_000)
    quiet = in_a_round(scheduler)
    scheduler.wait(quiet)
    assert scheduler.next_flow() is quiet
    scheduler.rest(quiet, lead)
    scheduler.wait(quiet)
    assert names(scheduler, 1) == [first]


def test_the_second_of_two_keystrokes_needs_no_credit_either() -> None:
    scheduler: Scheduler[Flow] = Scheduler(1_000_000)
    quiet = in_a_round(scheduler)
    scheduler.credit = 0
    for _ in range(2):
        scheduler.wait(quiet)
        assert scheduler.next_flow() is quiet
        scheduler.rest(quiet, 64)


def test_what_a_quiet_flow_sends_ahead_of_virtual_time_counts_all_the_same() -> None:
    scheduler: Scheduler[Flow] = Scheduler(1_000_000)
    often = in_a_round(scheduler)
    scheduler.wait(often)
    turns = 0
    while scheduler.next_flow() is often:
        turns += 1
        scheduler.rest(often, 100)
        scheduler.wait(often)
    assert turns == QUIET_LEAD // 100 + 1
    assert often.served == 1_100 + turns * 100


@pytest.mark.parametrize("chunk", [1_100, 16_384])
def test_what_flows_take_is_not_the_overdraft_of_datagrams(chunk: int) -> None:
    scheduler: Scheduler[Flow] = Scheduler(1)
    scheduler.advise(chunk)
    scheduler.credit -= chunk  # a flow may, because there is credit
    scheduler.credit -= QUIET_OVERDRAFT
    sent = 0
    while takes(scheduler):
        scheduler.queue_datagram(bytes(200), 0.0)
        assert scheduler.next_datagram(0.0) is not None
        sent += 200
    assert DATAGRAM_OVERDRAFT <= sent <= DATAGRAM_OVERDRAFT + 200
    scheduler.queue_datagram(bytes(200), 0.0)
    assert scheduler.next_datagram(0.0) is None


def test_a_datagram_leaves_within_50_ms_or_never() -> None:
    scheduler: Scheduler[Flow] = Scheduler(100)
    scheduler.queue_datagram(b"in time", 0.0)
    scheduler.queue_datagram(b"late", 0.0)
    assert scheduler.next_datagram(DATAGRAM_AGE_MAX) == b"in time"
    assert scheduler.next_datagram(math.nextafter(DATAGRAM_AGE_MAX, 1)) is None
    assert scheduler.expired == 1
    assert pytest.approx(0.050) == DATAGRAM_AGE_MAX


def test_expired_datagrams_go_even_without_credit_and_cost_none() -> None:
    scheduler: Scheduler[Flow] = Scheduler(FLOOR)
    scheduler.queue_datagram(b"late", 0.0)
    assert scheduler.next_datagram(1.0) is None
    assert scheduler.idle
    assert (scheduler.expired, scheduler.credit) == (1, FLOOR)


def test_beyond_the_limit_the_oldest_datagrams_are_dropped() -> None:
    scheduler: Scheduler[Flow] = Scheduler(DATAGRAM_BYTES_MAX * 2)
    size = DATAGRAM_BYTES_MAX // 8
    for number in range(10):
        scheduler.queue_datagram(bytes((number,)) * size, 0.0)
    left = []
    while (message := scheduler.next_datagram(0.0)) is not None:
        left.append(message[0])
    assert left == list(range(2, 10))
    assert scheduler.overflowed == 2


def test_the_limit_counts_only_what_still_waits() -> None:
    scheduler: Scheduler[Flow] = Scheduler(DATAGRAM_BYTES_MAX * 100)
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


def test_what_was_dropped_is_told_once() -> None:
    scheduler: Scheduler[Flow] = Scheduler(1)
    for size in (DATAGRAM_BYTES_MAX, 1, 1):
        scheduler.queue_datagram(bytes(size), 0.0)
    scheduler.clear()
    assert scheduler.take_dropped() == (2, 1)
    assert scheduler.take_dropped() == (0, 0)


# --- flows ------------------------------------------------------------------------------------


def serve(scheduler: Scheduler[Flow], flow: Flow, sent: int) -> None:
    assert scheduler.next_flow() is flow
    scheduler.requeue(flow, sent)


def test_bulk_flows_share_by_bytes_and_not_by_turns() -> None:
    scheduler: Scheduler[Flow] = Scheduler(1_000_000_000)
    sizes = {A: 16_384, B: 4_096, C: 100}
    sent = dict.fromkeys(sizes, 0)
    for flow in flows():
        scheduler.wait(flow)
    for _ in range(20_000):
        turn = scheduler.next_flow()
        assert turn is not None
        sent[turn.name] += sizes[turn.name]
        scheduler.requeue(turn, sizes[turn.name])
        assert max(sent.values()) - min(sent.values()) <= 2 * 16_384


def test_a_flow_that_comes_and_goes_gets_no_more_than_one_that_stays() -> None:
    scheduler: Scheduler[Flow] = Scheduler(1_000_000_000)
    stays, comes, _ = flows()
    sent = dict.fromkeys((A, B), 0)
    for flow in (stays, comes):
        scheduler.wait(flow)
    for _ in range(1_000):
        turn = scheduler.next_flow()
        assert turn is not None
        sent[turn.name] += 1_000
        if turn is comes:
            scheduler.rest(turn, 1_000)
            scheduler.wait(turn)
        else:
            scheduler.requeue(turn, 1_000)
    assert abs(sent[A] - sent[B]) <= 1_000


def test_a_flow_that_was_quiet_goes_before_bulk() -> None:
    scheduler: Scheduler[Flow] = Scheduler(1_000_000)
    bulk, other, quiet = flows()
    for flow in (bulk, other):
        scheduler.wait(flow)
    serve(scheduler, bulk, 16_384)
    serve(scheduler, other, 16_384)
    serve(scheduler, bulk, 16_384)
    scheduler.wait(quiet)
    assert names(scheduler, 3) == [C, B, A]


def test_what_is_sent_while_nobody_waits_is_not_held_against_a_flow() -> None:
    scheduler: Scheduler[Flow] = Scheduler(1_000_000)
    alone, late, _ = flows()
    scheduler.wait(alone)
    for _ in range(100):
        serve(scheduler, alone, 1_000)
    scheduler.wait(late)
    turns = []
    for _ in range(10):
        turn = scheduler.next_flow()
        assert turn is not None
        turns.append(turn.name)
        scheduler.requeue(turn, 1_000)
    assert abs(turns.count(A) - turns.count(B)) <= 2


def test_a_keystroke_needs_no_credit_and_bulk_does() -> None:
    scheduler: Scheduler[Flow] = Scheduler(1)
    bulk, other, quiet = flows()
    for flow in (bulk, other):
        scheduler.wait(flow)
    serve(scheduler, bulk, 16_384)
    scheduler.credit = 1
    serve(scheduler, other, 16_384)
    scheduler.credit = 1
    serve(scheduler, bulk, 16_384)
    scheduler.credit = -16_383
    assert scheduler.next_flow() is None
    scheduler.wait(quiet)
    assert scheduler.next_flow() is quiet
    assert scheduler.turn == QUIET_TURN
    scheduler.requeue(quiet, QUIET_TURN)
    assert scheduler.next_flow() is None, "it goes on, so it is bulk"
    scheduler.credit = 0
    assert scheduler.next_flow() is None, "a link that is used up to the byte is used up"
    scheduler.credit = 1
    assert scheduler.next_flow() is not None
    assert scheduler.turn == scheduler.chunk


@pytest.mark.parametrize("chunk", [600, 1_100, 16_384])
def test_the_overdraft_of_quiet_flows_ends_before_that_of_datagrams(chunk: int) -> None:
    scheduler: Scheduler[Flow] = Scheduler(1)
    scheduler.advise(chunk)
    scheduler.credit -= chunk
    sent = 0
    while True:
        scheduler.wait(Flow(A))
        turn = scheduler.next_flow()
        if turn is None:
            break
        assert scheduler.turn == min(QUIET_TURN, chunk)
        scheduler.credit -= 100
        sent += 100
    assert QUIET_OVERDRAFT <= sent <= QUIET_OVERDRAFT + 100
    while takes(scheduler):
        scheduler.credit -= 100
        sent += 100
    assert sent >= QUIET_OVERDRAFT + DATAGRAM_OVERDRAFT


def test_a_quiet_flow_waits_where_its_overdraft_ends() -> None:
    scheduler: Scheduler[Flow] = Scheduler()
    scheduler.credit = scheduler.quiet_floor
    scheduler.wait(Flow(A))
    assert scheduler.next_flow() is None
    scheduler.credit += 1
    assert names(scheduler, 1) == [A]


def test_a_turn_is_as_long_as_the_first_advice_before_there_is_one() -> None:
    scheduler: Scheduler[Flow] = Scheduler()
    assert scheduler.turn == scheduler.chunk == CHUNK_START


def test_a_flow_waits_once() -> None:
    scheduler: Scheduler[Flow] = Scheduler(100)
    first, second, _ = flows()
    for flow in (first, second, first):
        scheduler.wait(flow)
    assert names(scheduler, 3) == [A, B, None]


def test_a_cancelled_flow_has_no_turn() -> None:
    scheduler: Scheduler[Flow] = Scheduler(100)
    first, second, never = flows()
    scheduler.wait(first)
    scheduler.wait(second)
    scheduler.cancel(first)
    scheduler.cancel(never)
    assert names(scheduler, 2) == [B, None]
    scheduler.wait(first)
    assert scheduler.next_flow() is first
    scheduler.requeue(first, 1)
    scheduler.cancel(first)
    assert scheduler.idle


def test_a_lost_link_leaves_nothing_waiting() -> None:
    scheduler: Scheduler[Flow] = Scheduler(100)
    first, second, _ = flows()
    scheduler.wait(first)
    scheduler.wait(second)
    scheduler.requeue(second, 1)
    scheduler.queue_datagram(b"x", 0.0)
    scheduler.clear()
    assert scheduler.waiting == 0
    assert scheduler.idle
    assert (scheduler.credit, scheduler.expired) == (0, 1)
    assert not first.queued
    assert not second.queued


def test_what_a_lost_link_drops_is_counted_each_time_and_leaves_all_the_room() -> None:
    scheduler: Scheduler[Flow] = Scheduler()
    assert scheduler.credit == 0
    for _ in range(2):
        scheduler.queue_datagram(b"x", 0.0)
        scheduler.clear()
    assert scheduler.expired == 2
    scheduler.queue_datagram(bytes(DATAGRAM_BYTES_MAX), 0.0)
    assert scheduler.overflowed == 0


def test_a_flow_knows_whether_it_is_queued() -> None:
    scheduler: Scheduler[Flow] = Scheduler(1)
    flow = Flow(A)
    for leave in (scheduler.next_flow, lambda: scheduler.cancel(flow), scheduler.clear):
        scheduler.wait(flow)
        assert flow.queued
        leave()
        assert flow.queued == 0


def test_a_flow_that_was_cancelled_and_waits_again_has_one_turn_and_its_new_place() -> None:
    scheduler: Scheduler[Flow] = Scheduler(100)
    first, second, third = flows()
    for flow in (first, second, third):
        scheduler.wait(flow)
    scheduler.cancel(first)
    scheduler.wait(first)
    assert scheduler.waiting == 3
    assert names(scheduler, 4) == [B, C, A, None]
    assert scheduler.idle


@pytest.mark.parametrize("step", [1, -1, 7919])
def test_many_flows_may_end_in_one_turn_and_the_rest_keeps_its_order(step: int) -> None:
    scheduler: Scheduler[Flow] = Scheduler(100)
    waiting = [Flow(str(number)) for number in range(20_000)]
    for flow in waiting:
        scheduler.wait(flow)
    leaving = [waiting[number * step % 20_000] for number in range(20_000)]
    kept = {flow.name for flow in leaving[-5:]}
    begun = time.process_time()
    for flow in leaving[:-5]:
        scheduler.cancel(flow)
    # 4 ms on an idle machine. It was 10 s as long as each of them was looked for.
    assert time.process_time() - begun < 1
    assert scheduler.waiting == 5
    expected = [flow.name for flow in waiting if flow.name in kept]
    assert names(scheduler, 6) == [*expected, None]


def test_entries_of_cancelled_flows_are_never_more_than_those_that_wait() -> None:
    scheduler: Scheduler[Flow] = Scheduler(100)
    kept = [Flow(str(number)) for number in range(10)]
    for flow in kept:
        scheduler.wait(flow)
    flow = Flow(A)
    reference = weakref.ref(flow)
    for _ in range(1000):
        scheduler.wait(flow)
        scheduler.cancel(flow)
        assert len(scheduler._queue) <= 2 * scheduler.waiting
    del flow
    for flow in kept[:6]:
        scheduler.cancel(flow)
    assert reference() is None
    assert names(scheduler, 5) == ["6", "7", "8", "9", None]


# --- how many flows want to transmit --------------------------------------------------------------


def test_more_busy_flows_are_told_at_once_and_fewer_after_a_while() -> None:
    busy = BusyFlows()
    assert not busy.due(0, 10.0), "nothing to tell"
    assert busy.due(3, 10.0)
    assert busy.told == 3
    for at in range(1, 10):
        assert not busy.due(at % 3, 10.0 + DEMAND_HOLD * at / 20)
    assert busy.due(1, 10.0 + DEMAND_HOLD)
    assert busy.told == 2, "so many there were meanwhile"
    assert busy.due(0, 10.0 + 2 * DEMAND_HOLD)
    assert busy.told == 0
    assert not busy.due(0, 10.0 + 9 * DEMAND_HOLD)


def test_a_number_that_comes_again_stays_and_is_told_again() -> None:
    busy = BusyFlows()
    told = [busy.due(3 if step % 4 == 0 else 1, step * DEMAND_HOLD / 8) for step in range(80)]
    assert busy.told == 3
    assert told.count(True) == 10
