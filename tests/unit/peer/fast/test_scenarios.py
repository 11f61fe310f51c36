"""Paths of the kinds that users have, in virtual time: what share of the rate a transfer gets.

Each figure is a ratio of bytes that arrived in simulated seconds, so neither the speed nor the load
of the machine that runs the test has a part in it.
"""

import asyncio
import math
import random

import pytest

from socks_tunnel.peer.fast.congestion import Acked
from socks_tunnel.peer.fast.sender import CREDIT_WINDOWS
from support.compiled import pure_only
from support.sctp_network import Path, dtls_pair, run_virtual
from support.sctp_transfer import Result, Sink, bulk, channel, fast, opened, started
from support.tcp_cubic import TcpCubic
from support.two_ways import both_ways

MBIT = 1e6 / 8


def measure(there: Path, back: Path, **options: object) -> Result:
    return run_virtual(lambda: bulk(there, back, **options))  # type: ignore[arg-type]


def test_a_millisecond_of_reordering_is_no_loss() -> None:
    path = Path(delay=0.025, rate=12 * MBIT, queue=200, jitter=0.001)
    result = measure(path, Path(delay=0.025), warm=2, seconds=6)
    assert result.rate >= 0.9 * path.rate
    assert result.sender.snapshot().spurious <= 3


@pytest.mark.parametrize("turn", [0.0, 0.005, 0.01])
def test_a_short_queue_is_filled_and_not_flooded(turn: float) -> None:
    """Also between hosts that look at their sockets only now and then (`turn`, in seconds)."""
    path = Path(delay=0.02, rate=100 * MBIT, queue=250, turn=turn)
    result = measure(path, Path(delay=0.02, turn=turn), seconds=5)
    assert result.rate >= 0.85 * path.rate
    assert path.dropped < 0.01 * path.sent


@pytest.mark.parametrize("turn", [0.0, 0.01])
def test_a_long_fat_path_is_filled_by_one_flow(turn: float) -> None:
    path = Path(delay=0.04, rate=300 * MBIT, queue=2_000, turn=turn)
    result = measure(path, Path(delay=0.04, turn=turn), warm=1, seconds=2)
    assert result.rate >= 0.8 * path.rate


@pytest.mark.parametrize(
    ("delay", "rate", "queue", "share"), [(0.02, 100, 250, 0.6), (0.04, 300, 2_000, 0.8)]
)
def test_hosts_that_get_a_core_each_20_ms_keep_most_of_the_rate(
    delay: float, rate: float, queue: int, share: float
) -> None:
    """Timers are late there too. What the pacer is late by is caught up, or it sets the rate."""
    turn = 0.02
    path = Path(delay=delay, rate=rate * MBIT, queue=queue, turn=turn)
    back = Path(delay=delay, turn=turn)
    result = run_virtual(lambda: bulk(path, back, warm=1, seconds=3), turn)
    assert result.rate >= share * path.rate


def test_a_first_round_trip_that_took_long_does_not_slow_the_start_down() -> None:
    """The peer has no CPU when the first SACK is due. The pacer goes by that round trip at first."""
    path = Path(delay=0.02, rate=100 * MBIT, queue=250)
    pause = (0.1, 0.7)
    back = Path(delay=0.02, pauses=(pause,))
    result = measure(path, back, warm=pause[1], seconds=1)
    assert result.sender.snapshot().rtt_min < 0.05
    assert result.rate >= 0.85 * path.rate


def test_losses_by_chance_do_not_stop_the_paced_controller() -> None:
    rates = {}
    for name in ("cubic", "bbr"):
        path = Path(delay=0.02, rate=100 * MBIT, queue=500, loss=0.005)
        rates[name] = measure(path, Path(delay=0.02), congestion=name, warm=2, seconds=3).rate
    assert rates["bbr"] >= 10 * rates["cubic"]
    assert rates["bbr"] >= 0.7 * 100 * MBIT


def test_the_paced_controller_fills_a_path_without_flooding_it() -> None:
    path = Path(delay=0.02, rate=100 * MBIT, queue=250)
    result = measure(path, Path(delay=0.02), congestion="bbr", seconds=5)
    assert result.rate >= 0.85 * path.rate
    assert path.dropped < 0.01 * path.sent


def test_the_paced_controller_keeps_a_slow_path_short() -> None:
    """Through two probes of the round trip: a queue that they took for the path would stay."""
    path = Path(delay=0.01, rate=1 * MBIT, queue=100)
    result = measure(path, Path(delay=0.01), congestion="bbr", warm=2, seconds=23)
    assert result.rate >= 0.85 * path.rate
    assert result.sender.path.sender.recovery.trip.smoothed < 0.15
    assert path.dropped == 0


@pytest.mark.parametrize("congestion", ["cubic", "bbr"])
def test_a_transfer_after_a_long_quiet_time_gets_the_rate_too(congestion: str) -> None:
    """Fifteen seconds of keystrokes first: they say nothing of what the path can carry."""

    async def main() -> float:
        path = Path(delay=0.02, rate=100 * MBIT, queue=250)
        dtls = dtls_pair(path, Path(delay=0.02), probing=True)
        a, b = fast(dtls[0], congestion=congestion), fast(dtls[1], congestion=congestion)
        left, right = Sink(a), Sink(b)
        await started(a, b)
        one = channel(a)
        await opened(one)
        for _ in range(300):
            a.send_many(one, [bytes(64)])
            await asyncio.sleep(0.05)
        left.filling = one
        left.fill()
        await asyncio.sleep(1)
        before = right.received
        await asyncio.sleep(3)
        rate = (right.received - before) / 3
        await a.stop()
        await b.stop()
        return rate

    assert run_virtual(main) >= 0.85 * 100 * MBIT


def test_a_bottleneck_is_shared_with_a_tcp_flow() -> None:
    async def main() -> tuple[float, float]:
        path, back = Path(delay=0.02, rate=50 * MBIT, queue=150), Path(delay=0.02)
        rival = TcpCubic(path, back)
        transfer = asyncio.ensure_future(bulk(path, back, warm=12, seconds=20))
        await asyncio.sleep(0.3)
        rival.start()
        await asyncio.sleep(12)
        before = rival.delivered
        result = await transfer
        return result.rate, (rival.delivered - before) * 1_500 / 20

    ours, theirs = run_virtual(main)
    assert 0.3 <= ours / (50 * MBIT) <= 0.7
    assert 0.3 <= theirs / (50 * MBIT) <= 0.7


def test_two_flows_of_ours_share_a_bottleneck() -> None:
    async def main() -> tuple[Result, Result]:
        path, back = Path(delay=0.02, rate=50 * MBIT, queue=150), Path(delay=0.02)
        return await asyncio.gather(
            bulk(path, back, warm=4, seconds=10), bulk(path, back, warm=4, seconds=10)
        )

    for result in run_virtual(main):
        assert 0.3 <= result.rate / (50 * MBIT) <= 0.7


def test_the_windows_grow_with_the_path() -> None:
    """With aiortc's fixed window of 1 MiB, 80 ms would be a ceiling of 105 Mbit/s."""
    result = measure(Path(delay=0.04), Path(delay=0.04), seconds=2.5)
    assert result.rate > 3 * 1_048_576 / 0.08
    assert result.receiver.snapshot().receive_window == 16_777_216


async def _beside_bulk(there: Path) -> tuple[list[float], list[float], int]:
    """Returns how long datagrams and keystrokes took beside a transfer, and how many were sent."""
    back = Path(delay=0.005)
    dtls = dtls_pair(there, back, probing=True)
    a, b = fast(dtls[0]), fast(dtls[1])
    left, right = Sink(a), Sink(b)
    await started(a, b)
    lane, keys = channel(a), channel(a, "lane-1")
    voice = channel(a, "datagram", ordered=False, maxRetransmits=0)
    await opened(lane, keys, voice)
    left.filling = lane
    left.fill()
    await asyncio.sleep(2)
    loop = asyncio.get_running_loop()
    right.keep = True
    took: dict[str, list[float]] = {"datagram": [], "lane-1": []}

    def arrived(batch: list[tuple[object, bytes]]) -> None:
        for one, message in batch:
            label = one.label  # type: ignore[attr-defined]
            if label in took:
                took[label].append(loop.time() - float(message[:20]))

    right.sctp_messages = arrived  # type: ignore[method-assign,assignment]
    count = 200
    for _ in range(count):
        stamp = f"{loop.time():<20.9f}".encode()
        a.send_many(voice, [stamp + bytes(140)])
        a.send_many(keys, [stamp + bytes(44)])
        await asyncio.sleep(0.005)
    await asyncio.sleep(1)
    await a.stop()
    await b.stop()
    return took["datagram"], took["lane-1"], count


def test_datagrams_and_keystrokes_do_not_wait_behind_bulk_in_our_queues() -> None:
    """What is left is the queue of the path itself, which is the same for all of its packets."""
    rate, queue = 50 * MBIT, 30
    path = Path(delay=0.005, rate=rate, queue=queue)
    datagrams, keystrokes, count = run_virtual(lambda: _beside_bulk(path))
    floor = path.delay + queue * 1_500 / rate
    assert len(datagrams) >= 0.95 * count
    assert max(datagrams) < floor + 0.005
    assert len(keystrokes) == count
    assert sorted(keystrokes)[int(0.9 * count)] < floor + 0.005


async def _call_beside_bulk(there: Path, back: Path, seconds: float) -> tuple[list[float], int]:
    """Returns how long the datagrams of a call took beside a transfer, and how many were sent."""
    dtls = dtls_pair(there, back, probing=True)
    a, b = fast(dtls[0]), fast(dtls[1])
    left, right = Sink(a), Sink(b)
    await started(a, b)
    lane = channel(a)
    voice = channel(a, "datagram", ordered=False, maxRetransmits=0)
    await opened(lane, voice)
    left.filling = lane
    left.fill()
    loop = asyncio.get_running_loop()
    took: list[float] = []

    def arrived(batch: list[tuple[object, bytes]]) -> None:
        for one, message in batch:
            if one.label == "datagram":  # type: ignore[attr-defined]
                took.append(loop.time() - float(message[:20]))

    right.sctp_messages = arrived  # type: ignore[method-assign,assignment]
    end = loop.time() + seconds
    count = 0
    while loop.time() < end:
        a.send_many(voice, [f"{loop.time():<20.9f}".encode() + bytes(152)])
        count += 1
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.1)
    await a.stop()
    await b.stop()
    return took, count


def test_a_call_between_near_hosts_waits_in_no_long_queue() -> None:
    """A queue of 120 ms, as in the socket of a busy host: the transfer keeps little of it filled."""
    path, back = Path(delay=0.0005, rate=100 * MBIT, queue=1_000), Path(delay=0.0005)
    took, count = run_virtual(lambda: _call_beside_bulk(path, back, 6.0))
    assert len(took) >= 0.99 * count
    settled = sorted(took[len(took) // 3 :])
    assert settled[int(0.95 * len(settled))] < 0.010


@pytest.mark.parametrize("seed", range(4))
def test_a_datagram_never_waits_for_lost_packets(seed: int) -> None:
    """A call beside a transfer on a short path that loses 1 % each way, SACKs included.

    The receiver looks at its socket every two milliseconds, so that one SACK stands for all that
    came in between; the loss of that one SACK is the loss of all news.
    """
    there = Path(delay=0.0005, rate=200 * MBIT, queue=100, loss=0.01, seed=seed, turn=0.002)
    back = Path(delay=0.0005, loss=0.01, seed=100 + seed)
    took, count = run_virtual(lambda: _call_beside_bulk(there, back, 5))
    assert len(took) >= 0.95 * count
    assert max(took) < there.delay + there.queue * 1_500 / there.rate + there.turn


@pytest.mark.parametrize("seed", range(2))
def test_datagrams_survive_a_queue_that_is_hard_on_small_packets(seed: int) -> None:
    """A slow link whose queue, full of our own bulk, has room for full packets only."""
    there = Path(delay=0.01, rate=1 * MBIT, queue=6, harsh=True, seed=seed)
    back = Path(delay=0.01, rate=1 * MBIT, queue=50, harsh=True)
    took, count = run_virtual(lambda: _call_beside_bulk(there, back, 20))
    assert there.dropped > 0
    assert len(took) >= 0.9 * count


@pytest.mark.parametrize("seed", [1, 2])
def test_a_keystroke_waits_little_where_a_slow_path_is_full_both_ways(seed: int) -> None:
    """Once, each side took the queue of the other for its own: it took 400 ms, and bulk got less."""
    found = run_virtual(lambda: both_ways(1.0, 15.0, seed))
    took = sorted(parts[0] for parts, _ in found["rows"])  # in milliseconds
    assert took[math.ceil(0.99 * len(took)) - 1] < 250
    assert found["down"] > 0.80
    assert found["up"] > 0.72
    assert found["lost"] == 0
    assert found["drops"] == (0, 0)


def test_a_keystroke_does_not_wait_for_a_transfer_in_its_lane() -> None:
    """Once, it waited for the turns of the other lanes: 135 ms in the median and 219 at most."""
    found = run_virtual(lambda: both_ways(10.0, 4.0, 1, shared=True))
    took = sorted(parts[0] for parts, _ in found["rows"])
    assert took[len(took) // 2] < 100
    assert took[int(0.9 * len(took))] < 125


@pure_only("socks_tunnel.peer.fast.sender")
@pytest.mark.parametrize("seed", range(3))
def test_a_peer_whose_stamps_lie_leaves_a_tcp_its_share(seed: int) -> None:
    """All but 21 ms of each round trip is said to be wait on the way back: no lie can do more.

    When all of that was believed, TCP had 13 to 16 %. Beside an honest peer it has 43 to 67.
    """

    async def main() -> tuple[float, float]:
        there, back = Path(delay=0.02, rate=MBIT, queue=20), Path(delay=0.02, rate=MBIT, queue=20)
        dtls = dtls_pair(there, back, probing=True)
        a, b = fast(dtls[0]), fast(dtls[1])
        left, right = Sink(a), Sink(b)
        await started(a, b)
        one = channel(a)
        await opened(one)
        split = a.path.sender._split_trip

        def lied(event: Acked, _: float) -> None:
            split(event, max(event.rtt - 0.021, 0.0))

        a.path.sender._split_trip = lied
        rival = TcpCubic(there, back)
        left.filling = one
        left.fill()
        await asyncio.sleep(random.Random(seed).random())
        rival.start()
        await asyncio.sleep(10)
        ours, theirs = right.received, rival.delivered
        await asyncio.sleep(30)
        left.filling = None
        assert not left.failed + right.failed
        return (right.received - ours) / 30, (rival.delivered - theirs) * 1_500 / 30

    ours, theirs = run_virtual(main)
    assert theirs > 0.3 * MBIT
    assert ours > 0.2 * MBIT


@pytest.mark.parametrize("step", [-50_000, 3_000, 1 << 30])
def test_a_peer_that_lies_about_its_clock_costs_itself_only(step: int) -> None:
    """Its clock runs by `step` microseconds off each 10 ms. What comes of it is a queue on its way."""

    async def main() -> tuple[float, float, float]:
        there, back = (Path(delay=0.02, rate=MBIT, queue=20) for _ in range(2))
        dtls = dtls_pair(there, back, probing=True)
        a, b = fast(dtls[0]), fast(dtls[1])
        left, right = Sink(a), Sink(b)
        await started(a, b)
        one = channel(a)
        await opened(one)
        left.filling = one
        left.fill()
        most = 0.0
        for _ in range(1_000):
            b.path._clock_offset = (b.path._clock_offset + step) & 0xFFFF_FFFF
            await asyncio.sleep(0.01)
            sender = a.path.sender
            most = max(most, sender.credit / sender.controller.window)
        lied = right.received
        await asyncio.sleep(20)
        honest = right.received
        await asyncio.sleep(10)
        left.filling = None
        assert not left.failed + right.failed
        return most, lied / 10, (right.received - honest) / 10

    most, lied, honest = run_virtual(main)
    assert most <= 4 * CREDIT_WINDOWS  # the window may have been cut since
    assert lied > 0.5 * MBIT
    assert honest > 0.85 * MBIT
