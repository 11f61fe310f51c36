"""The figures of an association."""

import asyncio
import dataclasses

import pytest

from support.sctp_network import Path, dtls_pair, run_virtual
from support.sctp_transfer import Sink, channel, fast, opened, started


def test_a_snapshot_says_what_has_happened() -> None:
    async def main() -> None:
        client, server = dtls_pair(
            Path(delay=0.02, loss=0.02, seed=3), Path(delay=0.02), probing=True
        )
        a, b = fast(client), fast(server)
        right = Sink(b)
        await started(a, b)
        one = channel(a)
        await opened(one)
        for _ in range(100):
            one.send(bytes(20_000))
        await asyncio.sleep(0)
        queued = a.snapshot()
        assert 0 < queued.queued <= 2_000_000
        assert 0 < queued.outstanding <= queued.cwnd + queued.packet_size
        while a.has_unsent:
            await asyncio.sleep(0.01)
        sent, got = a.snapshot(), b.snapshot()
        assert right.received == 2_000_000
        assert sent.rtt == pytest.approx(0.04, abs=0.01)
        assert sent.rtt_min == pytest.approx(0.04, abs=0.001)
        assert (sent.queued, sent.outstanding) == (0, 0)
        assert client.path.lost > 0
        assert sent.retransmissions >= client.path.lost / 2
        assert sent.packets_sent >= 2_000_000 / 1_432
        assert sent.delivery_rate > 0
        assert (sent.interleaved, sent.batch_sacks) == (True, True)
        assert sent.packet_size + client.packet_overhead > 1_496
        assert got.sacks_sent >= sent.sacks_received > 0
        assert (got.held, got.malformed, got.dropped) == (0, 0, 0)
        assert got.receive_window >= 1_048_576
        assert all(isinstance(value, int | float) for value in dataclasses.asdict(got).values())

    run_virtual(main)
