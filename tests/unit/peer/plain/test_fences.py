"""The fences around aiortc's transports: who gets a turn, and where they are put up.

What passes and what is dropped: tests/integration/test_plain_fences.py.
"""

import asyncio
import time

import pytest
from aiortc import RTCConfiguration, RTCPeerConnection

from socks_tunnel.peer.fast import guard
from socks_tunnel.peer.plain import fences
from socks_tunnel.peer.plain.fences import (
    FencedPeerConnection,
    Turn,
    plain_connection,
)


async def test_a_turn_ends_when_its_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    others = 0

    def other() -> None:
        nonlocal others
        others += 1

    turn = Turn()
    asyncio.get_running_loop().call_soon(other)
    clock[0] = fences.TURN_SECONDS
    await turn.breathe()
    assert others == 0, "its time is not over"
    clock[0] += 0.0001
    await turn.breathe()
    assert others == 1
    # A link that has waited for a packet starts with a whole turn.
    turn.rest()
    clock[0] += 100
    turn.begin()
    asyncio.get_running_loop().call_soon(other)
    await turn.breathe()
    assert others == 1
    await asyncio.sleep(0)


async def test_an_aiortc_that_is_not_known_is_used_as_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for fit, kind in ((True, FencedPeerConnection), (False, RTCPeerConnection)):
        monkeypatch.setattr(guard, "FENCES_FIT", fit)
        pc = plain_connection(RTCConfiguration(iceServers=[]))
        assert type(pc) is kind
        await pc.close()
