"""Path MTU discovery without a path, and over simulated ones."""

import asyncio

import pytest

from socks_tunnel.peer.fast.pmtu import (
    BASE_WIRE,
    CANDIDATES,
    PROBES_MAX,
    RAISE_INTERVAL,
    PathMtu,
)
from support.sctp_network import Path, dtls_pair, run_virtual
from support.sctp_transfer import Sink, channel, fast, opened, started

OVERHEAD = 65


def search(mtu: int, pmtu: PathMtu, now: float = 1.0) -> float:
    """Answers probes as a path of this MTU would; returns when the search was over."""
    pmtu.start(now)
    for _ in range(200):
        if pmtu.state == "complete":
            return now
        now = max(now, pmtu.wake_at)
        size = pmtu.probe(now, 0.05)
        if size and size + pmtu.overhead <= mtu:
            assert pmtu.acknowledged(size, now + 0.05)
    raise AssertionError("the search has no end")


@pytest.mark.parametrize("overhead", [65, 85])
def test_the_base_is_at_most_1200_bytes_on_the_wire(overhead: int) -> None:
    pmtu = PathMtu(overhead)
    assert BASE_WIRE - 4 < pmtu.packet_size + overhead <= BASE_WIRE
    assert pmtu.packet_size % 4 == 0


@pytest.mark.parametrize("mtu", [1_200, 1_235, 1_240, 1_280, 1_390, 1_420, 1_492, 1_500, 9_000])
def test_the_largest_usual_size_that_fits_is_found(mtu: int) -> None:
    pmtu = PathMtu(OVERHEAD)
    search(mtu, pmtu)
    best = max(size for size in (*CANDIDATES, BASE_WIRE) if size <= mtu)
    assert best - 4 < pmtu.packet_size + OVERHEAD <= best


def test_one_lost_probe_is_no_verdict() -> None:
    pmtu = PathMtu(OVERHEAD)
    pmtu.start(1.0)
    first = pmtu.probe(1.0, 0.05)
    assert pmtu.probe(pmtu.wake_at, 0.05) == first
    assert [pmtu.probe(pmtu.wake_at, 0.05) == first for _ in range(PROBES_MAX - 1)] == [True, False]


def test_an_answer_that_is_not_to_the_last_probe_counts_for_nothing() -> None:
    pmtu = PathMtu(OVERHEAD)
    pmtu.start(1.0)
    size = pmtu.probe(1.0, 0.05)
    assert not pmtu.acknowledged(size + 4, 1.1)
    assert not pmtu.acknowledged(pmtu.packet_size, 1.1)
    assert pmtu.acknowledged(size, 1.1)
    assert not pmtu.acknowledged(size, 1.2)


def test_what_this_host_refuses_is_not_tried_again_in_this_search() -> None:
    pmtu = PathMtu(OVERHEAD)
    pmtu.start(1.0)
    size = pmtu.probe(1.0, 0.05)
    assert not pmtu.exceeded(size, 1.0)
    assert pmtu.wake_at == 1.0
    assert pmtu.probe(1.0, 0.05) < size


def test_a_black_hole_leads_back_to_the_base_and_the_search_goes_on_below_it() -> None:
    pmtu = PathMtu(OVERHEAD)
    search(1_500, pmtu)
    large = pmtu.packet_size
    assert pmtu.black_hole(10.0)
    assert pmtu.packet_size + OVERHEAD <= BASE_WIRE
    assert not pmtu.black_hole(10.0)
    assert 0 < pmtu.probe(10.0, 0.05) < large


def test_larger_sizes_are_tried_again_later() -> None:
    pmtu = PathMtu(OVERHEAD)
    now = search(1_400, pmtu)
    assert pmtu.wake_at == pytest.approx(now + RAISE_INTERVAL, abs=2)
    assert pmtu.probe(pmtu.wake_at, 0.05) + OVERHEAD > 1_490


def test_another_path_starts_from_the_base() -> None:
    pmtu = PathMtu(OVERHEAD)
    search(1_500, pmtu)
    pmtu.restart(85)
    assert pmtu.packet_size + 85 <= BASE_WIRE
    assert pmtu.wake_at == 0.0
    search(1_500, pmtu)
    assert 1_496 < pmtu.packet_size + 85 <= 1_500


@pytest.mark.parametrize("mtu", [1_200, 1_240, 1_500])
def test_a_transfer_over_a_narrow_path(mtu: int) -> None:
    async def main() -> None:
        client, server = dtls_pair(
            Path(delay=0.01, mtu=mtu - OVERHEAD), Path(delay=0.01, mtu=mtu - OVERHEAD), probing=True
        )
        a, b = fast(client), fast(server)
        right = Sink(b)
        await started(a, b)
        one = channel(a)
        await opened(one)
        for _ in range(20):
            one.send(bytes(50_000))
        await asyncio.sleep(15)
        assert right.received == 1_000_000
        assert mtu - 4 < a.snapshot().packet_size + OVERHEAD <= mtu
        assert a.snapshot().timeouts == 0

    run_virtual(main)


def test_a_path_that_becomes_narrow_is_noticed() -> None:
    async def main() -> None:
        there = Path(delay=0.01)
        client, server = dtls_pair(there, Path(delay=0.01), probing=True)
        a, b = fast(client), fast(server)
        right = Sink(b)
        await started(a, b)
        one = channel(a)
        await opened(one)
        one.send(bytes(50_000))
        await asyncio.sleep(2)
        assert a.snapshot().packet_size + OVERHEAD > 1_496
        there.mtu = 1_300 - OVERHEAD
        for _ in range(20):
            one.send(bytes(50_000))
        await asyncio.sleep(20)
        assert right.received == 1_050_000
        # What was cut for 1,500 bytes cannot be cut again (RFC 9260 section 7.3): IP did it.
        assert client.fragmented > 0
        assert 1_276 < a.snapshot().packet_size + OVERHEAD <= 1_280

    run_virtual(main)
