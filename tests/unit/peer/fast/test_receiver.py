"""TSNs in, SACKs out, and the size of the window."""

import struct

import pytest

from socks_tunnel.peer.fast.budget import WindowBudget
from socks_tunnel.peer.fast.receiver import (
    DUPLICATES_MAX,
    SACK_BLOCKS_MAX,
    SACK_DELAY,
    SACK_DELAY_BATCH,
    WINDOW_MAX,
    WINDOW_MIN,
    Receiver,
)

FIRST = 0xFFFF_FFFE
WHOLE = 3


def receiver(budget: WindowBudget | None = None) -> Receiver:
    made = Receiver(budget or WindowBudget())
    made.start(FIRST)
    return made


def take(made: Receiver, *offsets: int, size: int = 1, flags: int = WHOLE | 4) -> None:
    for offset in offsets:
        made.data((FIRST + offset) & 0xFFFFFFFF, flags, 1, 0, 53, bytes(size))


def read(sack: bytes) -> tuple[int, int, list[tuple[int, int]], list[int]]:
    kind, _, length, cumulative, window, gaps, duplicates = struct.unpack_from("!BBHLLHH", sack)
    assert (kind, length) == (3, len(sack))
    blocks = [struct.unpack_from("!HH", sack, 16 + 4 * n) for n in range(gaps)]
    tsns = struct.unpack_from(f"!{duplicates}L", sack, 16 + 4 * gaps)
    return (
        (cumulative - FIRST) & 0xFFFFFFFF,
        window,
        blocks,
        [(t - FIRST) & 0xFFFFFFFF for t in tsns],
    )


def test_a_sack_says_what_arrived_across_the_wrap() -> None:
    made = receiver()
    take(made, 0, 1, 2, 5, 6, 9, 1, 5)
    cumulative, window, blocks, duplicates = read(made.sack(1_000))
    assert (cumulative, blocks, duplicates) == (2, [(3, 4), (7, 7)], [1, 5])
    assert window == WINDOW_MIN
    take(made, 3, 4)
    assert read(made.sack(1_000))[0::2] == (6, [(3, 3)])
    take(made, 8, 7)
    assert read(made.sack(1_000))[0::2] == (9, [])


def test_a_sack_fits_the_room_it_is_given() -> None:
    made = receiver()
    take(made, *range(1, 800, 2))
    take(made, 1, 3)
    assert len(made.sack(64)) == 64
    take(made, 801)
    assert len(made.sack(9_000)) == 16 + 4 * SACK_BLOCKS_MAX


def test_a_sender_of_ours_is_told_of_the_oldest_and_the_youngest_blocks() -> None:
    made = receiver()
    made.batch_sacks = True
    take(made, *range(1, 2_000, 2))
    blocks = read(made.sack(9_000))[2]
    assert blocks[0] == (2, 2)
    assert blocks[-1] == (2_000, 2_000)
    assert blocks == sorted(blocks)


def test_duplicates_are_reported_up_to_a_bound() -> None:
    made = receiver()
    take(made, *[0] * 100)
    assert len(read(made.sack(1_000))[3]) == DUPLICATES_MAX
    assert made.duplicates == 99


@pytest.mark.parametrize(("batch", "delay"), [(False, SACK_DELAY), (True, SACK_DELAY_BATCH)])
def test_a_lone_packet_is_acknowledged_after_a_delay(batch: bool, delay: float) -> None:
    made = receiver()
    made.batch_sacks = batch
    take(made, 0)
    made.packet_done()
    assert not made.batch_done(5.0, 0.01)
    assert made.sack_at == 5.0 + delay
    assert made.owes_sack
    made.sack(100)
    assert made.sack_at == 0.0
    assert not made.owes_sack


def test_what_is_held_reduces_the_credit() -> None:
    made = receiver()
    take(made, 0, size=1_000, flags=2)
    assert made.credit == WINDOW_MIN - 1_000
    take(made, 1, size=500, flags=1)
    assert made.credit == WINDOW_MIN


def test_beyond_the_window_nothing_is_taken_out_of_order() -> None:
    made = receiver()
    size = 60_000
    take(made, *range(2, 120, 2), size=size, flags=0)
    assert made.reassembly.held <= made.window
    assert made.chunks_dropped > 0
    before = made.cumulative
    take(made, 0, size=size, flags=4 | WHOLE)
    assert made.cumulative == before + 1


def arrive(made: Receiver, count: int, now: float, rtt: float) -> None:
    made.bytes_received += count
    made.packet_done()
    made.batch_done(now, rtt)


def test_the_window_doubles_while_half_of_it_arrives_in_a_round_trip() -> None:
    budget = WindowBudget()
    made, now = receiver(budget), 1.0
    for _ in range(10):
        arrive(made, made.window, now, 0.08)
        now += 0.081
    assert made.window == WINDOW_MAX
    assert budget.reserved == WINDOW_MAX - WINDOW_MIN
    made.close()
    assert budget.reserved == 0


def test_a_slow_peer_leaves_the_window_as_it_is() -> None:
    made, now = receiver(), 1.0
    for _ in range(50):
        arrive(made, made.window // 3, now, 0.08)
        now += 0.081
    assert made.window == WINDOW_MIN


def test_the_windows_of_all_share_a_budget() -> None:
    budget = WindowBudget(WINDOW_MIN)
    first, second = receiver(budget), receiver(budget)
    for made in (first, second):
        for now in (1.0, 2.0, 3.0):
            arrive(made, made.window, now, 0.1)
    assert (first.window, second.window) == (2 * WINDOW_MIN, WINDOW_MIN)
    first.close()
    arrive(second, second.window, 4.0, 0.1)
    assert second.window == 2 * WINDOW_MIN


def test_a_forward_tsn_moves_on_and_may_join_what_came_before() -> None:
    made = receiver()
    take(made, 0, 3, 4, 7)
    made.forward(struct.pack("!LHH", (FIRST + 2) & 0xFFFFFFFF, 1, 0), interleaved=False)
    assert read(made.sack(1_000))[0::2] == (4, [(3, 3)])
    made.forward(struct.pack("!L", (FIRST + 1) & 0xFFFFFFFF), interleaved=False)
    assert read(made.sack(1_000))[0] == 4
