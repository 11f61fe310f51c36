"""A worker that drains says so only when every byte has reached its socket, in both directions."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from socks_tunnel.protocol.addresses import HostPort, encode_address
from socks_tunnel.protocol.ipc import Drain, Drained, IpcPing, IpcPong
from support.worker_pair import LINK, Pair, Side, attach, link_up, worker_pair

STEP = 65_536
"""Bytes that are sent at a time, until some are owed. A quarter of a window."""

SMALL_BUFFER = 4096
"""SO_RCVBUF in bytes of a reader that is late, so that what is owed waits in the worker."""


@contextlib.asynccontextmanager
async def linked(directory: Path, features: tuple[str, ...]) -> AsyncIterator[Pair]:
    async with worker_pair(directory, linked=False) as pair:
        for side, peer in ((pair.gateway, "office"), (pair.endpoint, "laptop")):
            link_up(side, peer)
            attach(side, features=features)
        yield pair


def small(sock: socket.socket) -> socket.socket:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    sock.setblocking(False)
    return sock


async def read_all(sock: socket.socket) -> int:
    loop = asyncio.get_running_loop()
    total = 0
    while data := await loop.sock_recv(sock, 65_536):
        total += len(data)
    return total


async def open_flow(pair: Pair, client: socket.socket, port: int) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", pair.port))
    asked = b"\5\1\0\5\1\0" + encode_address(HostPort("127.0.0.1", port))
    await loop.sock_sendall(client, asked)
    answer = b""
    while len(answer) < 12:
        answer += await loop.sock_recv(client, 12 - len(answer))
    assert answer[:4] == b"\5\0\5\0"


def told_drained(side: Side) -> bool:
    return any(isinstance(message, Drained) for message in side.controls)


@pytest.mark.parametrize("drains", ["gateway", "endpoint"])
@pytest.mark.parametrize("direction", ["up", "down"])
@pytest.mark.parametrize("resume", [True, False], ids=["resume", "plain"])
async def test_bytes_that_are_owed_hold_up_the_drain(
    tmp_path: Path, *, resume: bool, direction: str, drains: str
) -> None:
    loop = asyncio.get_running_loop()
    listening = small(socket.create_server(("127.0.0.1", 0)))
    client = small(socket.socket())
    features = ("udp", "bind", "resume") if resume else ("udp", "bind")
    with listening, client:
        async with linked(tmp_path, features) as pair, asyncio.timeout(60):
            await open_flow(pair, client, listening.getsockname()[1])
            target, _ = await loop.sock_accept(listening)
            with target:
                target.setblocking(False)
                sender, reader = (client, target) if direction == "up" else (target, client)
                receiving = pair.endpoint_worker if direction == "up" else pair.gateway_worker
                reader.shutdown(socket.SHUT_WR)  # the reader has nothing to say
                size = 0
                while not receiving.memory.used:  # the kernel takes the first megabytes
                    await loop.sock_sendall(sender, bytes(STEP))
                    size += STEP
                    while receiving.counters.received["tcp"] < size:
                        await asyncio.sleep(0)
                sender.shutdown(socket.SHUT_WR)
                (flow,) = receiving.sessions[LINK].flows
                while flow.state != "finished" and not flow.ended:
                    await asyncio.sleep(0)
                side = pair.gateway if drains == "gateway" else pair.endpoint
                side.send_control(0, Drain())
                draining = pair.gateway_worker if drains == "gateway" else pair.endpoint_worker
                side.send_control(0, IpcPing(1))
                await side.control(IpcPong)
                if draining is receiving or resume:
                    assert not told_drained(side)
                assert await read_all(reader) == size
                await side.control(Drained)
                assert not len(draining.sessions[LINK].flows)
