"""The HTTP server: its connections at its end, responses without an end, what it refuses."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import uvloop

from socks_tunnel.ops import http_server
from socks_tunnel.ops.http_messages import Bounds, Handler, Request, Response
from socks_tunnel.ops.http_server import HttpServer

BOUNDS = Bounds(
    connections=8, per_address=8, requests=8, body=100, read_timeout=60, handle_timeout=60
)


async def nothing(request: Request) -> Response:
    return Response(403)


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_comes_as_the_server_stops_is_closed(
    factory: Callable[[], asyncio.AbstractEventLoop], turns: int, tmp_path: Path
) -> None:
    """Whatever has been done with it by then: a socket that is lost complains when it is freed."""
    path = str(tmp_path / "s")

    async def stopped() -> None:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
            listening.bind(path)
            listening.listen()
            server = HttpServer("test", listening, nothing, BOUNDS, methods=frozenset({"POST"}))
            server.start()
            await asyncio.sleep(0)
            client.connect(path)
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.stop()
            client.settimeout(60)
            with contextlib.suppress(ConnectionResetError):  # it was never accepted
                assert client.recv(1) == b""

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(stopped())
    gc.collect()


# --- responses without an end ---------------------------------------------------------------------


class Pieces:
    """A stream of pieces that the test puts into a queue; None is its end."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.closed = asyncio.Event()

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        piece = await self.queue.get()
        if piece is None:
            raise StopAsyncIteration
        return piece

    def close(self) -> None:
        assert not self.closed.is_set()
        self.closed.set()


class Streaming:
    def __init__(self) -> None:
        self.pieces = Pieces()
        self.requests: list[Request] = []
        self.server = HttpServer(
            "test",
            socket.create_server(("127.0.0.1", 0)),
            self.answer,
            BOUNDS,
            methods=frozenset({"GET", "HEAD"}),
        )
        self.port: int = self.server._listening.getsockname()[1]

    async def answer(self, request: Request) -> Response:
        self.requests.append(request)
        return Response(200, headers={"Content-Type": "text/x"}, stream=self.pieces)

    async def ask(self, method: str = "GET") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"{method} / HTTP/1.1\r\nHost: a\r\nX-Y: \xe9\r\n\r\n".encode("latin-1"))
        return reader, writer


async def test_a_stream_is_sent_piece_by_piece_and_closed_once() -> None:
    async with asyncio.timeout(60):
        streaming = Streaming()
        streaming.server.start()
        reader, writer = await streaming.ask()
        head = await reader.readuntil(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        assert b"content-length" not in head.lower()
        assert streaming.requests[0].headers == {"host": "a", "x-y": "\xe9"}
        for piece in (b"one", b"twice"):
            streaming.pieces.queue.put_nowait(piece)
            assert await reader.readuntil(piece + b"\r\n")
        streaming.pieces.queue.put_nowait(None)
        assert await reader.read() == b"0\r\n\r\n"
        await streaming.pieces.closed.wait()
        writer.close()
        await streaming.server.stop()


async def test_a_reader_that_leaves_ends_its_stream() -> None:
    async with asyncio.timeout(60):
        streaming = Streaming()
        streaming.server.start()
        reader, writer = await streaming.ask()
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await streaming.pieces.closed.wait()
        await streaming.server.stop()


async def test_a_reader_that_is_too_slow_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "STREAM_BACKLOG_MAX", 65_536)
    async with asyncio.timeout(60):
        streaming = Streaming()
        streaming.server.start()
        _, writer = await streaming.ask()
        sent = 0
        while not streaming.pieces.closed.is_set():
            streaming.pieces.queue.put_nowait(b"x" * 65_536)
            sent += 65_536
            assert sent < 1 << 30, "nothing bounds what waits for this reader"
            while not (streaming.pieces.queue.empty() or streaming.pieces.closed.is_set()):
                await asyncio.sleep(0)
        writer.close()
        await streaming.server.stop()


async def test_a_stream_ends_with_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_server, "STREAM_SECONDS_MAX", 0.01)
    async with asyncio.timeout(60):
        streaming = Streaming()
        streaming.server.start()
        reader, writer = await streaming.ask()
        with contextlib.suppress(ConnectionResetError):
            await reader.read()
        await streaming.pieces.closed.wait()
        writer.close()
        await streaming.server.stop()


async def test_the_head_of_a_stream_has_no_pieces() -> None:
    async with asyncio.timeout(60):
        streaming = Streaming()
        streaming.server.start()
        reader, writer = await streaming.ask("HEAD")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"\r\n\r\n")
        assert streaming.pieces.closed.is_set()
        writer.close()
        await streaming.server.stop()


async def test_the_end_of_the_server_ends_its_streams() -> None:
    async with asyncio.timeout(60):
        streaming = Streaming()
        streaming.server.start()
        reader, writer = await streaming.ask()
        await reader.readuntil(b"\r\n\r\n")
        await streaming.server.stop()
        assert streaming.pieces.closed.is_set()
        writer.close()


# --- what is refused --------------------------------------------------------------------------------


async def refusals(
    *requests: bytes, bounds: Bounds = BOUNDS, handler: Handler = nothing, held: int = 0
) -> list[str]:
    """Reasons that are counted when each of these is sent on a connection of its own."""
    counted: list[str] = []
    server = HttpServer(
        "test",
        socket.create_server(("127.0.0.1", 0)),
        handler,
        bounds,
        methods=frozenset({"GET"}),
        refused=counted.append,
    )
    port = server._listening.getsockname()[1]
    async with asyncio.timeout(60):
        server.start()
        open_ones = [await asyncio.open_connection("127.0.0.1", port) for _ in range(held)]
        while len(server.connections) < held:
            await asyncio.sleep(0)
        for request in requests:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        for _, writer in open_ones:
            writer.close()
        await server.stop()
    return counted


GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def test_what_is_refused_is_counted_once() -> None:
    assert await refusals(GET) == []
    assert await refusals(b"nonsense\r\n\r\n", b"PUT / HTTP/1.1\r\nHost: a\r\n\r\n") == [
        "malformed",
        "malformed",
    ]


async def test_a_connection_too_many_is_counted() -> None:
    bounds = replace(BOUNDS, connections=2)
    assert await refusals(GET, bounds=bounds, held=2) == ["too-many"]
    bounds = replace(BOUNDS, per_address=1)
    assert await refusals(GET, bounds=bounds, held=1) == ["too-many"]


async def test_a_request_that_does_not_come_is_counted() -> None:
    bounds = replace(BOUNDS, read_timeout=0.05)
    assert await refusals(b"GET / HT", bounds=bounds) == ["timeout"]


async def test_a_request_that_takes_too_long_or_fails_is_counted() -> None:
    async def slow(request: Request) -> Response:
        await asyncio.Event().wait()
        return Response(200)

    async def broken(request: Request) -> Response:
        raise LookupError(request.path)

    bounds = replace(BOUNDS, handle_timeout=0.05)
    assert await refusals(GET, bounds=bounds, handler=slow) == ["busy"]
    assert await refusals(GET, bounds=replace(BOUNDS, requests=0)) == ["busy"]
    assert await refusals(GET, handler=broken) == ["bug"]
