"""When a sender says that it is not answered, step by step; and on paths that are only slow."""

import asyncio

import pytest

from socks_tunnel.peer.fast.stall import DRAIN_MAX, LATE, LOOK_AGAIN, STALLED_MIN, Stall
from support.sctp_network import Path, dtls_pair, run_virtual
from support.sctp_transfer import Sink, channel, fast, opened, started

MBIT = 1e6 / 8


def test_a_second_time_out_without_an_answer_is_a_stall() -> None:
    stall = Stall()
    stall.look(5.0)
    assert not stall.silent
    stall.timed_out(10.4, 0.4, 0.0)
    assert stall.at == pytest.approx(10.8)
    stall.timed_out(10.7, 0.8, 0.0)  # the next one, which was backed off, changes nothing
    stall.look(10.79)
    assert not stall.silent
    stall.look(10.81)
    assert stall.silent == pytest.approx(0.81)
    assert not stall.at
    stall.timed_out(12.3, 1.6, 0.0)
    assert not stall.at, "it is said once"


def test_a_short_time_out_is_not_enough() -> None:
    stall = Stall()
    stall.timed_out(10.0, 0.15, 0.0)
    stall.look(10.15 + 0.01)
    assert not stall.silent
    stall.look(10.0 - 0.15 + STALLED_MIN + 0.01)
    assert stall.silent == pytest.approx(STALLED_MIN + 0.01)


def test_what_is_in_flight_is_given_the_time_that_it_takes() -> None:
    for drain, patience in ((0.3, 0.4), (0.7, 0.7), (99.0, DRAIN_MAX)):
        stall = Stall()
        stall.timed_out(10.4, 0.4, drain)
        assert stall.at == pytest.approx(10.4 + patience)


def test_an_answer_ends_it_and_the_next_time_out_begins_it_anew() -> None:
    stall = Stall()
    stall.timed_out(10.4, 0.4, 0.0)
    stall.answered()
    stall.look(11.0)
    assert (stall.at, stall.silent) == (0.0, 0.0)
    stall.timed_out(12.0, 0.4, 0.0)
    stall.look(12.45)
    assert stall.silent
    stall.answered()
    assert not stall.silent


def test_who_notices_late_was_stopped_and_looks_again() -> None:
    stall = Stall()
    stall.timed_out(10.4, 0.4, 0.0)
    stall.look(10.8 + LATE + 0.01)
    assert not stall.silent
    assert stall.at == pytest.approx(10.8 + LATE + 0.01 + LOOK_AGAIN)
    stall.look(stall.at)
    assert stall.silent == pytest.approx(0.8 + LATE + 0.01 + LOOK_AGAIN)


# --- with the whole sender, in virtual time --------------------------------------------------------


class Watching(Sink):
    """Also writes down when its transport begins to be stalled, and when it is so no more."""

    def __init__(self, transport: object) -> None:
        super().__init__(transport)  # type: ignore[arg-type] # a FastSctpTransport
        self.stalls: list[float] = []
        self.ends: list[float] = []

    def sctp_turn_ended(self) -> None:
        stalled = bool(self.transport.path.sender.recovery.stall.silent)
        if stalled != (len(self.stalls) > len(self.ends)):
            moments = self.stalls if stalled else self.ends
            moments.append(asyncio.get_running_loop().time())


async def both_ways(there: Path, back: Path, seconds: float) -> tuple[Watching, Watching]:
    """Fills a path both ways for so long."""
    dtls = dtls_pair(there, back, probing=True)
    a, b = fast(dtls[0]), fast(dtls[1])
    left, right = Watching(a), Watching(b)
    await started(a, b)
    one = channel(a)
    await opened(one)
    left.filling = one
    left.fill()
    while one.id not in b._data_channels:
        await asyncio.sleep(0.01)
    right.filling = b._data_channels[one.id]
    right.fill()
    await asyncio.sleep(seconds)
    assert not left.failed + right.failed
    left.filling = right.filling = None
    await a.stop()
    await b.stop()
    return left, right


@pytest.mark.parametrize(
    "path",
    [
        {"rate": 1 * MBIT, "delay": 0.02, "queue": 20},
        {"rate": 1 * MBIT, "delay": 0.025, "queue": 100},
        {"rate": 1 * MBIT, "delay": 0.02, "queue": 50, "loss": 0.02},
        {"rate": 0.5 * MBIT, "delay": 0.025, "queue": 20},
        {"rate": 2 * MBIT, "delay": 0.1, "queue": 60, "jitter": 0.1, "loss": 0.03},
    ],
    ids=str,
)
def test_a_path_that_is_full_both_ways_is_never_taken_for_broken(path: dict[str, float]) -> None:
    there, back = Path(seed=1, **path), Path(seed=2, **path)  # type: ignore[arg-type] # numbers all
    left, right = run_virtual(lambda: both_ways(there, back, 20))
    assert left.stalls == right.stalls == []
    assert there.peak + there.lost > 10, "it was full, or lost packets"
    assert min(left.received, right.received) > 200_000


def test_a_way_that_fails_is_noticed_within_six_tenths_of_a_second_at_50_ms() -> None:
    """What is sent the other way arrives all the time."""
    broken = [False]
    there = Path(delay=0.025, rate=10 * MBIT, queue=100, drop=lambda _: broken[0])
    back = Path(delay=0.025, rate=10 * MBIT, queue=100)

    async def main() -> list[tuple[float, float]]:
        loop = asyncio.get_running_loop()
        dtls = dtls_pair(there, back, probing=True)
        a, b = fast(dtls[0]), fast(dtls[1])
        left = Watching(a)
        await started(a, b)
        one = channel(a)
        await opened(one)
        left.filling = one
        left.fill()
        took = []
        for pause in (3.0, 3.3, 3.71):
            await asyncio.sleep(pause)
            broken[0], since, known = True, loop.time(), len(left.stalls)
            while len(left.stalls) == known:
                await asyncio.sleep(0.01)
            broken[0], noticed = False, loop.time()
            while len(left.ends) == known:
                await asyncio.sleep(0.01)
            took.append((noticed - since, loop.time() - noticed))
        left.filling = None
        await a.stop()
        await b.stop()
        return took

    for noticed, ended in run_virtual(main):
        # The path's queue holds 0.1 s, and so much more the packets before the failure take.
        assert STALLED_MIN <= noticed < 0.75
        assert ended < 0.6
