"""The ways of channels. What passes an exchange is in test_sctp.py, which has two of them."""

import asyncio
from typing import Any
from unittest.mock import Mock

import pytest

from socks_tunnel.peer.fast.exchange import Exchange
from socks_tunnel.peer.fast.streams import DATAGRAM, NORMAL
from support.sctp_network import Path, dtls_pair, run_virtual
from support.sctp_transfer import channel, fast, opened, started


def exchange() -> Exchange:
    """One of an association that nobody has connected."""
    made: Any = fast(dtls_pair(Path(), Path())[0])
    assert isinstance(made.exchange, Exchange)
    return made.exchange


def a_channel(stream: int | None, **fields: Any) -> Mock:
    """As much of a data channel as is looked at."""
    known: dict[str, Any] = {
        "label": "lane-0",
        "ordered": True,
        "maxRetransmits": None,
        "maxPacketLifeTime": None,
    }
    return Mock(id=stream, **(known | fields))


async def test_a_channel_has_one_way_and_needs_a_stream() -> None:
    ours = exchange()
    lane = a_channel(4)
    way = ours.way(lane)
    assert ours.way(lane) is way
    assert (way.stream.stream_id, way.stream.rank, way.stream.owner) == (4, NORMAL, lane)
    assert (way.unordered, way.retransmits, way.lifetime) == (False, -1, 0.0)
    voice = ours.way(a_channel(6, label="datagram", ordered=False, maxRetransmits=0))
    assert (voice.stream.rank, voice.unordered, voice.retransmits) == (DATAGRAM, True, 0)
    assert ours.way(a_channel(8, maxPacketLifeTime=250)).lifetime == 0.25
    with pytest.raises(ValueError, match="no stream"):
        ours.send_many(a_channel(None), [b"x"])


async def test_a_later_channel_on_a_stream_begins_anew() -> None:
    ours = exchange()
    first = ours.way(a_channel(4))
    first.stream.next_ssn = 9
    second = ours.way(a_channel(4))
    assert second.stream is not first.stream
    assert second.stream.next_ssn == 0
    ours.forget(4)
    assert not ours.waits(4)


async def test_a_reset_waits_for_what_is_queued() -> None:
    ours = exchange()
    lane = a_channel(4)
    ours.send_uncounted(lane, 50, b"opening")
    assert ours.waits(4)
    assert not ours.waits(5)
    ours.release()
    assert not ours.waits(4)
    assert ours.path.closed


async def test_what_was_queued_on_a_stream_that_was_reset_is_dropped() -> None:
    ours = exchange()
    ours.send_uncounted(a_channel(4), 50, b"of the old channel")
    ours.send_uncounted(a_channel(6), 50, b"another")
    ours.forget(4)
    assert ours.path.sender.scheduler.queued == len(b"another")
    ours.release()
    assert ours.path.sender.scheduler.queued == 0


def test_a_lifetime_is_one_where_the_peer_can_skip() -> None:
    async def main() -> None:
        client, server = dtls_pair(Path(delay=0.01), Path(delay=0.01))
        a, b = fast(client), fast(server)
        await started(a, b)
        lane = channel(a, "brief", maxPacketLifeTime=500)
        await opened(lane)
        stream = a.exchange.way(lane).stream
        client.blocked = True
        for skips in (True, False):
            a._remote_partial_reliability = skips
            a.exchange.send_many(lane, [bytes(5_000)])
        now = asyncio.get_running_loop().time()
        assert [message.expiry for message in stream.queue] == [now + 0.5, 0.0]
        await a.stop()
        await b.stop()

    run_virtual(main)
