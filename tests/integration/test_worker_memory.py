"""Flows while a worker is short of memory: they go slowly, and none of them stands still for ever."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from socks_tunnel.protocol.addresses import HostPort, encode_address
from socks_tunnel_workers.relay import tcp as tcp_flow
from socks_tunnel_workers.relay.tcp import WINDOW_WHEN_SHORT, TcpRelay
from socks_tunnel_workers.worker import Worker
from support.worker_pair import LINK, WINDOW, attach, link_up, worker_pair

SIZE = 3 * WINDOW


@contextlib.asynccontextmanager
async def source(size: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """A target that sends so many bytes once the event is set, and ends."""
    go = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        writer.write(bytes(size))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], go


def relay(worker: Worker) -> TcpRelay:
    """Returns the only flow of a worker."""
    (flow,) = worker.sessions[LINK].flows
    assert isinstance(flow, TcpRelay)
    return flow


@pytest.mark.parametrize("resume", [True, False], ids=["resume", "plain"])
@pytest.mark.parametrize("shrunk", [True, False], ids=["both-short", "sender-short"])
async def test_a_download_while_memory_is_short_comes_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, resume: bool, shrunk: bool
) -> None:
    monkeypatch.setattr(tcp_flow, "TAIL_SECONDS", 0.0)
    features = ("udp", "bind", "resume") if resume else ("udp", "bind")
    async with worker_pair(tmp_path, linked=False) as pair, source(SIZE) as (port, go):
        for side, peer in ((pair.gateway, "office"), (pair.endpoint, "laptop")):
            link_up(side, peer)
            attach(side, features=features, resume=False)
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
            writer.write(b"\5\1\0\5\1\0" + encode_address(HostPort("127.0.0.1", port)))
            assert (await reader.readexactly(12))[:4] == b"\5\0\5\0"
            memory = pair.endpoint_worker.memory
            held = memory.charge(memory.limit - (memory.limit >> 3))
            if shrunk:
                relay(pair.gateway_worker).shrink(WINDOW_WHEN_SHORT)
            go.set()
            assert len(await reader.read()) == SIZE
            held.end()
            writer.close()
