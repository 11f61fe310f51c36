"""An opening for a flow that is open ends that flow, whatever the worker is busy with.

"An opening for a flow that exists is a protocol error" (docs/protocol.md section 4). Nothing may be left behind without
an owner: the supervisor forgets a flow with the 0x15 that passes it.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.ipc import Drain, Drained
from socks_tunnel.protocol.messages import (
    Bind,
    BindListening,
    CloseConnection,
    ConnectionOpened,
    OpenConnection,
    Resolve,
    ResolveKind,
    UdpAssociate,
    UdpAssociateClosed,
    UdpAssociateOpened,
    decode,
)
from socks_tunnel.protocol.session import Opening
from support.worker_pair import LINK, worker_pair

ID = 77
PROTOCOL_ERROR = 0x15


def openings(port: int) -> dict[str, tuple[Opening, type]]:
    """Each way to open a flow, and the answer that says that it is open."""
    return {
        "connect": (OpenConnection(ID, "127.0.0.1", port), ConnectionOpened),
        "bind": (Bind(ID, HostPort("127.0.0.1", 0)), BindListening),
        "udp": (UdpAssociate(ID), UdpAssociateOpened),
    }


@pytest.mark.parametrize("busy", ["idle", "full", "draining"])
@pytest.mark.parametrize("again", ["connect", "bind", "udp", "resolve"])
@pytest.mark.parametrize("first", ["connect", "bind", "udp"])
async def test_a_second_opening_ends_the_flow(
    tmp_path: Path, first: str, again: str, busy: str
) -> None:
    server = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    limits = "limits = { flows_per_worker = 1 }" if busy == "full" else ""
    async with server, worker_pair(tmp_path, endpoint=limits) as pair:
        pair.gateway.filter = pair.endpoint.filter = lambda _message: False
        side, worker = pair.endpoint, pair.endpoint_worker
        kinds = openings(server.sockets[0].getsockname()[1])
        opening, opened = kinds[first]
        side.recording = True
        side.send_message(LINK, opening.encode())
        await side.message(opened)
        if busy == "draining":
            side.send_control(0, Drain())
        side.sent.clear()
        repeated: Opening = (
            Resolve(ID, ResolveKind.ADDRESSES, "localhost")
            if again == "resolve"
            else kinds[again][0]
        )
        side.send_message(LINK, repeated.encode())
        ended = await side.message(UdpAssociateClosed if first == "udp" else CloseConnection)
        assert (ended.conn_id, ended.reason) == (ID, PROTOCOL_ERROR)
        assert not len(worker.sessions[LINK].flows)
        assert +worker.counters.active == {}
        if busy == "draining":
            await side.control(Drained)
        assert [decode(message) for message in side.sent] == []
