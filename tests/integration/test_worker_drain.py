"""A worker says that it has drained when every byte has reached its socket, and no client waits."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from socks_tunnel.protocol.addresses import HostPort, encode_address
from socks_tunnel.protocol.ipc import Drain, Drained, IpcPing, IpcPong
from support.worker_pair import LINK, Pair, Side, attach, link_up, worker_pair

STEP = 65_536
"""Bytes that are sent at a time, until some are owed. A quarter of a window."""

SMALL_BUFFER = 4096
"""Bytes of the socket buffers around a reader that is late, so that what is owed waits in the worker."""


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


async def drain(pair: Pair) -> None:
    """Has the gateway's worker drain; returns once it does."""
    pair.gateway.send_control(0, Drain())
    pair.gateway.send_control(0, IpcPing(1))
    await pair.gateway.control(IpcPong)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0)


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


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"", b"\5\1\0"),
        (b"\5", b"\1\0"),
        (b"\4\1", b"\0\1\0\0\0\0\0"),
        (b"GET http://", b"127.0.0.1/ HTTP/0.9\r\n\r\n"),
    ],
    ids=["silent", "socks5", "socks4", "http"],
)
async def test_a_client_that_was_accepted_gets_its_answer_before_the_worker_has_drained(
    tmp_path: Path, first: bytes, second: bytes
) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        async with worker_pair(tmp_path) as pair, asyncio.timeout(60):
            await loop.sock_connect(client, ("127.0.0.1", pair.port))
            await loop.sock_sendall(client, first)
            await until(lambda: pair.gateway_worker.clients.opening)
            await drain(pair)
            assert not told_drained(pair.gateway)
            await loop.sock_sendall(client, second)
            assert await loop.sock_recv(client, 100)
            client.close()
            await pair.gateway.control(Drained)


async def test_a_client_that_says_nothing_does_not_hold_up_the_drain(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        async with worker_pair(tmp_path) as pair, asyncio.timeout(60):
            await loop.sock_connect(client, ("127.0.0.1", pair.port))
            await until(lambda: pair.gateway_worker.clients.opening)
            await drain(pair)
            await pair.gateway.control(Drained)
            assert pair.gateway_worker.clients.opening


async def test_a_request_that_comes_in_a_drain_becomes_a_flow_that_is_waited_for(
    tmp_path: Path,
) -> None:
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        listening.setblocking(False)
        client.setblocking(False)
        async with worker_pair(tmp_path) as pair, asyncio.timeout(60):
            await loop.sock_connect(client, ("127.0.0.1", pair.port))
            await until(lambda: pair.gateway_worker.clients.opening)
            await drain(pair)
            port = listening.getsockname()[1]
            await loop.sock_sendall(
                client, b"\5\1\0\5\1\0" + encode_address(HostPort("127.0.0.1", port))
            )
            target, _ = await loop.sock_accept(listening)
            with target:
                target.setblocking(False)
                await loop.sock_sendall(target, b"late")
                received = b""
                while not received.endswith(b"late"):
                    received += await loop.sock_recv(client, 100)
                assert not told_drained(pair.gateway)
            client.close()
            await pair.gateway.control(Drained)


async def test_an_http_response_reaches_its_reader_before_the_worker_has_drained(
    tmp_path: Path,
) -> None:
    """Its flow has ended: what is left waits in the front end."""
    loop = asyncio.get_running_loop()
    body = bytes(30_000)  # so little comes at once, in one message
    with socket.create_server(("127.0.0.1", 0)) as listening, small(socket.socket()) as client:
        listening.setblocking(False)
        async with worker_pair(tmp_path) as pair, asyncio.timeout(60):
            await loop.sock_connect(client, ("127.0.0.1", pair.port))
            worker = pair.gateway_worker
            await until(lambda: worker.clients.opening)
            (session,) = worker.clients.opening
            accepted = session._sock  # type: ignore[attr-defined]  # what waits must not fit into it
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SMALL_BUFFER)
            port = listening.getsockname()[1]
            await loop.sock_sendall(
                client, b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port
            )
            origin, _ = await loop.sock_accept(listening)
            with origin:
                origin.setblocking(False)
                await loop.sock_recv(origin, 1000)
                head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
                await loop.sock_sendall(origin, head % len(body) + body)
            await until(lambda: not len(worker.sessions[LINK].flows))
            (answering,) = worker.clients.opening
            assert answering.answering
            await drain(pair)
            assert not told_drained(pair.gateway)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * len(body))
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * len(body))
            assert await read_all(client) > len(body)
            await pair.gateway.control(Drained)


async def test_an_http_connection_between_two_requests_is_closed_by_a_drain(
    tmp_path: Path,
) -> None:
    """With its origin, whose flow would hold the drain up as long as both stay open."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as client:
        listening.setblocking(False)
        client.setblocking(False)
        async with worker_pair(tmp_path) as pair, asyncio.timeout(60):
            await loop.sock_connect(client, ("127.0.0.1", pair.port))
            port = listening.getsockname()[1]
            await loop.sock_sendall(
                client, b"GET http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\n\r\n" % port
            )
            origin, _ = await loop.sock_accept(listening)
            with origin:
                origin.setblocking(False)
                await loop.sock_recv(origin, 1000)
                await loop.sock_sendall(origin, b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
                response = b""
                while not response.endswith(b"hi"):
                    response += await loop.sock_recv(client, 1000)
                assert len(pair.gateway_worker.sessions[LINK].flows) == 1
                await drain(pair)
                assert await loop.sock_recv(client, 100) == b""
                assert await loop.sock_recv(origin, 100) == b""
            await pair.gateway.control(Drained)
