"""HTTP clients through a gateway worker and an endpoint worker, on real sockets."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from socks_tunnel.config.users import hash_password
from support.worker_pair import Pair, counted, worker_pair

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with worker_pair(tmp_path) as running:
        yield running


class WebServer:
    """An origin that says what it saw. It ends each connection after `requests` requests."""

    def __init__(self, requests: int) -> None:
        self.requests = requests
        self.heads: list[bytes] = []
        self.connections = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            for _ in range(self.requests):
                head = await reader.readuntil(b"\r\n\r\n")
                self.heads.append(head)
                length = 0
                for line in head.split(b"\r\n"):
                    if line.lower().startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = await reader.readexactly(length)
                digest = hashlib.sha256(body).hexdigest().encode()
                if head.startswith(b"GET /big"):
                    writer.write(b"HTTP/1.0 200 OK\r\n\r\n" + bytes(5_000_000))
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 64\r\n\r\n" + digest)
                await writer.drain()
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()


@contextlib.asynccontextmanager
async def web(requests: int = 100) -> AsyncIterator[WebServer]:
    server = WebServer(requests)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


@contextlib.asynccontextmanager
async def client(pair: Pair) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
    try:
        async with asyncio.timeout(60):
            yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and the body of one answer with a length."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    return int(head.split()[1]), await reader.readexactly(length)


def get(port: int, path: str = "/", host: str = "127.0.0.1", more: str = "") -> bytes:
    return f"GET http://{host}:{port}{path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode()


EMPTY = hashlib.sha256(b"").hexdigest().encode()


async def test_requests_of_one_connection_go_by_one_flow(pair: Pair) -> None:
    async with web() as server, client(pair) as (reader, writer):
        for number in range(3):
            writer.write(get(server.port, f"/{number}"))
            assert await answer(reader) == (200, EMPTY)
        assert server.connections == 1
        assert server.heads[0].startswith(
            b"GET /0 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % server.port
        )
        assert b"Via: 1.1 socks-tunnel\r\n" in server.heads[0]


async def test_an_origin_that_closes_each_time_is_dialled_each_time(pair: Pair) -> None:
    async with web(requests=1) as server, client(pair) as (reader, writer):
        for _ in range(5):
            writer.write(get(server.port))
            assert await answer(reader) == (200, EMPTY)
        assert server.connections == 5


async def test_a_large_body_each_way(pair: Pair) -> None:
    body = os.urandom(3_000_000)
    async with web() as server, client(pair) as (reader, writer):
        writer.write(
            b"POST http://127.0.0.1:%d/ HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            % (server.port, len(body))
        )
        writer.write(body)
        assert await answer(reader) == (200, hashlib.sha256(body).hexdigest().encode())
        writer.write(get(server.port, "/big").replace(b"HTTP/1.1", b"HTTP/1.0"))
        raw = await reader.read()
        assert len(raw.partition(b"\r\n\r\n")[2]) == 5_000_000
    async with asyncio.timeout(60):
        while pair.gateway_worker.memory.used or pair.gateway_worker.clients.handshakes:
            await asyncio.sleep(0.01)


async def test_connect(pair: Pair) -> None:
    async with web() as server, client(pair) as (reader, writer):
        writer.write(b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: x\r\n\r\n" % server.port)
        writer.write(b"GET /inside HTTP/1.1\r\n\r\n")  # early data
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
        assert await answer(reader) == (200, EMPTY)
    assert server.heads == [b"GET /inside HTTP/1.1\r\n\r\n"]


async def test_a_connect_behind_an_answer_that_is_not_read_yet_has_its_turn(pair: Pair) -> None:
    async with web() as server:
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, ("127.0.0.1", pair.port))
        where = b"127.0.0.1:%d" % server.port
        await loop.sock_sendall(
            sock,
            b"GET http://%b/big HTTP/1.1\r\nHost: %b\r\n\r\n" % (where, where)
            + b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (where, where)
            + b"GET /inside HTTP/1.1\r\n\r\n",
        )
        async with asyncio.timeout(60):
            while not server.heads:
                await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(sock=sock)
        async with asyncio.timeout(60):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Transfer-Encoding: chunked" in head
            size = 0
            while (line := await reader.readline()) != b"0\r\n":
                size += int(line, 16)
                await reader.readexactly(int(line, 16) + 2)
            assert size == 5_000_000
            assert await reader.readline() == b"\r\n"
            assert await reader.readuntil(b"\r\n\r\n") == (
                b"HTTP/1.1 200 Connection established\r\n\r\n"
            )
            assert await answer(reader) == (200, EMPTY)
        writer.close()
    assert server.heads[1] == b"GET /inside HTTP/1.1\r\n\r\n"


@pytest.mark.parametrize("method", ["CONNECT", "GET"])
async def test_true_status_codes(pair: Pair, method: str) -> None:
    with socket.socket() as free:  # bound and not listening: refuses
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        async with client(pair) as (reader, writer):
            for host, status in (("127.0.0.1", 502), ("10.1.2.3", 403), ("no-such.invalid", 502)):
                target = f"{host}:{port}" if method == "CONNECT" else f"http://{host}:{port}/"
                writer.write(f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                got, body = await answer(reader)
                assert got == status
                assert body.startswith(b"socks-tunnel: ")
                assert body.endswith(b"\n")
                assert body.count(b"\n") == 1


async def test_a_target_that_does_not_answer_is_504(tmp_path: Path) -> None:
    gateway = "[socks]\nconnect_timeout = 0.5\n"
    async with worker_pair(tmp_path, gateway=gateway) as pair:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
            plugs = [socket.socket() for _ in range(4)]
            for plug in plugs:
                plug.setblocking(False)
                plug.connect_ex(full.getsockname())
            async with client(pair) as (reader, writer):
                writer.write(get(full.getsockname()[1]))
                assert (await answer(reader))[0] == 504
            for plug in plugs:
                plug.close()


async def test_no_link_is_503(tmp_path: Path) -> None:
    gateway = "[socks]\nconnect_timeout = 0.2\n"
    async with (
        worker_pair(tmp_path, gateway=gateway, linked=False) as pair,
        client(pair) as (reader, writer),
    ):
        writer.write(b"CONNECT 127.0.0.1:9 HTTP/1.0\r\n\r\n")
        assert await answer(reader) == (503, b"socks-tunnel: there is no link to an endpoint\n")


async def test_a_web_page_cannot_use_it(pair: Pair) -> None:
    async with web() as server, client(pair) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 500\r\n\r\n")
        writer.write(get(server.port))
        raw = await reader.read()
        assert raw.startswith(b"HTTP/1.1 400 Bad Request\r\n")
        assert raw.count(b"HTTP/1.1") == 1
        assert server.connections == 0
    assert counted(pair.gateway_worker, "socks_rejected_total", "origin-form") == 1


async def test_passwords(tmp_path: Path) -> None:
    (tmp_path / "users").write_text(f"ana:{hash_password('secret')}\n")
    async with (
        worker_pair(tmp_path, gateway='socks.users_file = "users"') as pair,
        web() as server,
        client(pair) as (reader, writer),
    ):
        for password, status in (("", 407), ("wrong", 407), ("secret", 200), ("secret", 200)):
            token = base64.b64encode(f"ana:{password}".encode()).decode()
            more = f"Proxy-Authorization: Basic {token}\r\n" if password else ""
            writer.write(get(server.port, more=more))
            assert (await answer(reader))[0] == status
        assert all(b"Proxy" not in head for head in server.heads)
        # SOCKS4 has no password
        old_reader, old_writer = await asyncio.open_connection("127.0.0.1", pair.port)
        old_writer.write(b"\x04\x01\x00\x50\x7f\x00\x00\x01ana\x00")
        assert await old_reader.read() == b"\x00\x5b" + bytes(6)
        old_writer.close()


async def test_an_origin_that_keeps_no_connection_sees_an_orderly_end(pair: Pair) -> None:
    seen: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
        try:
            seen.set_result(await reader.read())
        except ConnectionResetError as error:
            seen.set_exception(error)
        writer.close()

    server = await asyncio.start_server(once, "127.0.0.1", 0)
    async with server, client(pair) as (reader, writer):
        writer.write(get(server.sockets[0].getsockname()[1]))
        assert (await answer(reader)) == (200, b"ok")
        async with asyncio.timeout(60):
            assert await seen == b""


async def test_a_client_that_resets_in_the_middle_resets_the_origin(pair: Pair) -> None:
    seen: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        try:
            await reader.read()
            seen.set_result(False)
        except ConnectionResetError:
            seen.set_result(True)
        writer.close()

    server = await asyncio.start_server(hang, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
        writer.write(get(server.sockets[0].getsockname()[1]))
        await reader.readuntil(b"half")
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        writer.transport.abort()
        async with asyncio.timeout(60):
            assert await seen
            while list(pair.gateway_worker.flows()):
                await asyncio.sleep(0.01)
