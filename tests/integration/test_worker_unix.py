"""SOCKS clients on a Unix socket, through a gateway worker and an endpoint worker."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Self

import pytest

from socks_tunnel.config.users import hash_password
from socks_tunnel.protocol.addresses import HostPort, encode_address
from socks_tunnel.protocol.socks5 import parse_udp_packet, udp_header
from support.worker_pair import Pair, counted, worker_pair

CLIENT = f"unix:pid={os.getpid()},uid={os.getuid()}"
CONNECT, BIND, UDP_ASSOCIATE = 1, 2, 3
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "socks.sock"


@contextlib.asynccontextmanager
async def unix_pair(path: Path, gateway: str = "") -> AsyncIterator[Pair]:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(64)
        async with worker_pair(
            path.parent, gateway=gateway, listeners=[(listening, "socks", None)]
        ) as running:
            yield running


@pytest.fixture
async def pair(path: Path) -> AsyncIterator[Pair]:
    async with unix_pair(path) as running:
        yield running


@contextlib.asynccontextmanager
async def echo_server() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def read_reply(reader: asyncio.StreamReader) -> tuple[int, str, int]:
    head = await reader.readexactly(4)
    assert head[:1] + head[2:] == b"\x05\0\x01"
    return (
        head[1],
        socket.inet_ntoa(await reader.readexactly(4)),
        int.from_bytes(await reader.readexactly(2), "big"),
    )


async def ask(
    path: Path, command: int, host: str, port: int
) -> tuple[Streams, tuple[int, str, int]]:
    """Make a request in one piece with the greeting; the connection and the reply."""
    reader, writer = await asyncio.open_unix_connection(path)
    request = bytes((5, 1, 0, 5, command, 0)) + encode_address(HostPort(host, port))
    writer.write(request)
    assert await reader.readexactly(2) == b"\x05\0"
    return (reader, writer), await read_reply(reader)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_connect_with_half_close_and_who_it_was(pair: Pair, path: Path) -> None:
    async with echo_server() as port:
        (reader, writer), (code, host, _) = await ask(path, CONNECT, "127.0.0.1", port)
        assert (code, host) == (0, "127.0.0.1")
        (flow,) = pair.gateway_worker.flows()
        assert flow.as_row(0.0)["client"] == CLIENT
        payload = os.urandom(600_000)
        writer.write(payload)
        writer.write_eof()
        async with asyncio.timeout(60):
            assert await reader.read() == payload
        await close(writer)
    assert counted(pair.gateway_worker, "requests_total", "connect", "succeeded") == 1


async def test_a_refusal_arrives_whole(pair: Pair, path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    (reader, writer), (code, *_) = await ask(path, CONNECT, "127.0.0.1", port)
    assert code == 5
    assert await reader.read() == b""
    await close(writer)


async def test_bind(pair: Pair, path: Path) -> None:
    (reader, writer), (code, host, port) = await ask(path, BIND, "127.0.0.1", 9)
    assert code == 0
    _, caller = await asyncio.open_connection(host, port)
    assert await read_reply(reader) == (0, *caller.get_extra_info("sockname"))
    caller.write(b"hello")
    assert await reader.readexactly(5) == b"hello"
    await close(caller)
    await close(writer)


async def test_a_password_is_asked_for_here_too(path: Path) -> None:
    (path.parent / "users").write_text(f"ana:{hash_password('secret')}\n")
    async with unix_pair(path, gateway='socks.users_file = "users"'):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"\x05\x01\0")
        assert await reader.read() == b"\x05\xff"
        await close(writer)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"\x05\x01\x02\x01\x03ana\x06secret")
        async with asyncio.timeout(60):
            assert await reader.readexactly(4) == b"\x05\x02\x01\0"
        await close(writer)


async def test_a_wrong_password_is_logged_with_who_it_was(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (path.parent / "users").write_text(f"ana:{hash_password('secret')}\n")
    async with unix_pair(path, gateway='socks.users_file = "users"'):
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"\x05\x01\x02\x01\x03ana\x05wrong")
        async with asyncio.timeout(60):
            assert await reader.read() == b"\x05\x02\x01\x01"
        await close(writer)
    assert f"client {CLIENT} offered a wrong user name or password" in caplog.text


# --- UDP ------------------------------------------------------------------------------------------


class Datagrams:
    """A UDP socket on loopback."""

    def __init__(self) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(("127.0.0.1", 0))
        self.address: tuple[str, int] = self.sock.getsockname()

    async def receive(self) -> bytes:
        async with asyncio.timeout(60):
            return await asyncio.get_running_loop().sock_recv(self.sock, 65_536)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


async def dropped(pair: Pair, reason: str) -> None:
    async with asyncio.timeout(60):
        while not counted(pair.gateway_worker, "udp_dropped_total", reason):
            await asyncio.sleep(0.005)


async def test_the_relay_is_on_loopback_and_belongs_to_who_sends_first(
    pair: Pair, path: Path
) -> None:
    with Datagrams() as client, Datagrams() as stranger, Datagrams() as target:
        (_, writer), (code, *relay) = await ask(path, UDP_ASSOCIATE, "0.0.0.0", 0)
        assert (code, relay[0]) == (0, "127.0.0.1")
        packet = udp_header(HostPort(*target.address)) + b"ping"
        client.sock.sendto(packet, (relay[0], relay[1]))
        assert await target.receive() == b"ping"
        stranger.sock.sendto(packet, (relay[0], relay[1]))
        await dropped(pair, "foreign-source")
        (flow,) = pair.gateway_worker.flows()
        (endpoint_flow,) = pair.endpoint_worker.flows()
        assert flow.as_row(0.0)["client"] == CLIENT
        target.sock.sendto(b"pong", ("127.0.0.1", endpoint_flow.bound.port))  # type: ignore[attr-defined]  # it is an association
        answer = await client.receive()
        assert answer[parse_udp_packet(answer).offset :] == b"pong"
        await close(writer)
        async with asyncio.timeout(60):
            while list(pair.gateway_worker.flows()):
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("host", ["0.0.0.0", "127.0.0.1"])
async def test_a_client_that_says_its_port_is_not_overtaken(
    pair: Pair, path: Path, host: str
) -> None:
    with Datagrams() as client, Datagrams() as stranger, Datagrams() as target:
        (_, writer), (code, *relay) = await ask(path, UDP_ASSOCIATE, host, client.address[1])
        assert code == 0
        stranger.sock.sendto(udp_header(HostPort(*target.address)) + b"x", (relay[0], relay[1]))
        await dropped(pair, "foreign-source")
        client.sock.sendto(udp_header(HostPort(*target.address)) + b"y", (relay[0], relay[1]))
        assert await target.receive() == b"y"
        await close(writer)


async def test_associations_are_counted_by_user(path: Path) -> None:
    async with unix_pair(path, gateway="limits.associations_per_client = 2") as pair:
        writers = []
        for expected in (0, 0, 1):
            (_, writer), (code, *_) = await ask(path, UDP_ASSOCIATE, "0.0.0.0", 0)
            assert code == expected
            writers.append(writer)
        assert pair.gateway_worker.clients.associations.clients == {f"unix:uid={os.getuid()}": 2}
        for writer in writers:
            await close(writer)
