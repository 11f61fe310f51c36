"""Channels of a TURN client in time: bindings, refreshes and the end; with a transport made of a list."""

import asyncio

import pytest
from aioice import stun

from socks_tunnel.peer.ice import relay
from socks_tunnel.peer.ice.relay import (
    CHANNEL_REFRESH,
    CHANNELS_MAX,
    UNBOUND_MAX,
)
from unit.peer.ice.test_relay import PEER, Relay, channel_data


@pytest.fixture
async def turn(monkeypatch: pytest.MonkeyPatch) -> Relay:
    return Relay(monkeypatch)


async def test_datagrams_wait_for_the_channel(turn: Relay) -> None:
    for number in range(UNBOUND_MAX + 3):
        turn.transport.sendto(b"%d" % number, PEER)
    await turn.settle()
    assert turn.wire.sent == []
    assert turn.transport.drops == {"relay-full": 3}
    turn.answer.set_result(None)
    await turn.settle()
    assert turn.bindings == [(0x4000, PEER)]
    assert turn.wire.sent == [channel_data(0x4000, b"%d" % n) for n in range(UNBOUND_MAX)]
    turn.transport.sendto(b"at once", PEER)
    assert turn.wire.sent[-1] == channel_data(0x4000, b"at once")


async def test_a_failed_binding_is_tried_again_with_the_same_number(turn: Relay) -> None:
    turn.transport.sendto(b"lost", PEER)
    await turn.settle()
    turn.answer.set_exception(stun.TransactionTimeout())
    await turn.settle()
    turn.answer = asyncio.get_running_loop().create_future()
    turn.answer.set_result(None)
    turn.transport.sendto(b"sent", PEER)
    await turn.settle()
    assert turn.bindings == [(0x4000, PEER)] * 2
    assert turn.wire.sent == [channel_data(0x4000, b"sent")]
    assert turn.transport.dropped == 1


async def test_an_old_channel_is_bound_anew_once(
    turn: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 8656 section 9: the permission lasts 300 s. Data goes on meanwhile."""
    assert CHANNEL_REFRESH < 300
    turn.answer.set_result(None)
    turn.transport.sendto(b"1", PEER)
    await turn.settle()
    turn.answer = asyncio.get_running_loop().create_future()
    turn.transport._channels[PEER].refresh_at = 0.0
    for data in (b"2", b"3"):
        turn.transport.sendto(data, PEER)
    await turn.settle()
    assert len(turn.bindings) == 2
    assert turn.wire.sent == [channel_data(0x4000, data) for data in (b"1", b"2", b"3")]
    turn.answer.set_result(None)
    await turn.settle()
    turn.transport.sendto(b"4", PEER)
    assert len(turn.bindings) == 2


async def test_channels_are_bounded(turn: Relay) -> None:
    for port in range(1, CHANNELS_MAX + 2):
        turn.transport.sendto(b"x", ("198.51.100.7", port))
    await turn.settle()
    assert len(turn.bindings) == CHANNELS_MAX
    assert len({number for number, _ in turn.bindings}) == CHANNELS_MAX
    assert turn.transport.drops == {"relay-full": 1}
    turn.client.dropped = 2  # a stream to the server was full
    assert turn.transport.drops == {"relay-full": 3}
    turn.answer.set_result(None)
    await turn.settle()


async def test_closing_tells_the_receiver_at_once_and_the_server_later(
    turn: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def delete() -> None:
        await deleted

    monkeypatch.setattr(turn.client, "delete", delete)
    turn.transport.close()
    turn.transport.close()
    await turn.settle()
    assert turn.receiver.lost == [None]
    assert turn.wire.closings == 0
    turn.transport.sendto(b"too late", PEER)
    deleted.set_result(None)
    await turn.settle()
    assert turn.wire.closings == 1
    assert turn.wire.sent == []


async def test_a_dead_server_cannot_hold_up_the_end(
    turn: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def delete() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(relay, "RELEASE_TIMEOUT", 0)
    monkeypatch.setattr(turn.client, "delete", delete)
    await relay.release(turn.client)
    assert turn.wire.closed
