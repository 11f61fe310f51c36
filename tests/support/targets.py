"""Target servers for the tests: one process, every kind of behaviour a target can have.

    targets.py serve            binds every server to a free port, prints their ports as one JSON line,
                                and serves until its standard input ends
    targets.py generate SIZE    writes the body that GET /bytes/SIZE has

With ?gate=NAME the second half of a body waits for a POST to /gates/NAME.
A body of SIZE bytes is the same wherever it is made: blocks of 64 KiB, each beginning with its own
number, so that a block that was lost, repeated or moved changes the hash.
"""

import asyncio
import collections
import contextlib
import functools
import hashlib
import json
import random
import socket
import struct
import sys
from collections.abc import Iterator
from typing import Any, cast

import uvloop
from aiohttp import web

BLOCK = 65_536
_NUMBER = struct.Struct(">Q")
_FILLER = random.Random(1928).randbytes(BLOCK - _NUMBER.size)
SOURCE_BLOCK = _NUMBER.pack(0) + _FILLER
"""What the server `source` sends again and again."""

_LINGER_RESET = struct.pack("ii", 1, 0)


def body(size: int) -> Iterator[bytes]:
    """The body of `size` bytes, in pieces of at most one block."""
    for number in range(size // BLOCK):
        yield _NUMBER.pack(number) + _FILLER
    if rest := size % BLOCK:
        yield (_NUMBER.pack(size // BLOCK) + _FILLER)[:rest]


@functools.lru_cache
def body_hash(size: int) -> str:
    """SHA-256 of the body of `size` bytes, in hex."""
    digest = hashlib.sha256()
    for piece in body(size):
        digest.update(piece)
    return digest.hexdigest()


class State:
    """What the servers saw, as GET /state gives it."""

    def __init__(self) -> None:
        self.open: dict[str, int] = {}
        self.accepted: dict[str, int] = {}
        self.resets: dict[str, int] = {}
        self.finished: dict[str, list[int]] = {}
        self.datagrams: dict[str, int] = {}

    def opened(self, name: str) -> None:
        self.open[name] = self.open.get(name, 0) + 1
        self.accepted[name] = self.accepted.get(name, 0) + 1

    def closed(self, name: str, received: int, exc: Exception | None) -> None:
        self.open[name] -= 1
        if isinstance(exc, ConnectionResetError):
            self.resets[name] = self.resets.get(name, 0) + 1
        else:
            self.finished.setdefault(name, []).append(received)


class Connection(asyncio.BufferedProtocol):
    """What the stream servers share: one buffer a connection, counting, pausing."""

    name: str

    def __init__(self, state: State) -> None:
        self.state = state
        self.buffer = memoryview(bytearray(262_144))
        self.received = 0
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.state.opened(self.name)
        self.started()

    def started(self) -> None:
        """Act on a new connection."""

    def got(self, data: memoryview) -> None:
        """Act on received bytes; the view is valid during the call."""

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.received += nbytes
        self.got(self.buffer[:nbytes])

    def connection_lost(self, exc: Exception | None) -> None:
        self.state.closed(self.name, self.received, exc)


class Echo(Connection):
    """Sends back what it gets; after the client's EOF, the rest and then its own."""

    name = "echo"

    def got(self, data: memoryview) -> None:
        self.transport.write(bytes(data))

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Discard(Connection):
    """Reads everything as fast as it comes; after EOF answers how many bytes those were."""

    name = "discard"

    def eof_received(self) -> bool:
        self.transport.write(b"%d\n" % self.received)
        return False


class Hash(Connection):
    """Reads until EOF, then answers `BYTES SHA256` and closes: a server that needs half-close."""

    name = "hash"

    def started(self) -> None:
        self.digest = hashlib.sha256()

    def got(self, data: memoryview) -> None:
        self.digest.update(data)

    def eof_received(self) -> bool:
        self.transport.write(f"{self.received} {self.digest.hexdigest()}\n".encode())
        return False


class FinishFirst(Connection):
    """Sends a line and its EOF at once, then goes on reading until the client's EOF."""

    name = "finish_first"

    def started(self) -> None:
        self.transport.write(b"that is all from here\n")
        self.transport.write_eof()


class Reset(Connection):
    """Answers the first bytes it gets with a RST."""

    name = "reset"

    def got(self, data: memoryview) -> None:
        peer: socket.socket = self.transport.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_RESET)
        self.transport.abort()


class Source(Connection):
    """Sends without end, as fast as the client takes it."""

    name = "source"

    def started(self) -> None:
        self.transport.set_write_buffer_limits(high=4 * BLOCK)
        self.writable = True
        self.fill()

    def fill(self) -> None:
        while self.writable and not self.transport.is_closing():
            self.transport.write(SOURCE_BLOCK)

    def pause_writing(self) -> None:
        self.writable = False

    def resume_writing(self) -> None:
        self.writable = True
        # Not from here: write() may call pause_writing() and be called back in turn.
        asyncio.get_running_loop().call_soon(self.fill)


class Datagrams(asyncio.DatagramProtocol):
    """What the datagram servers share."""

    name: str

    def __init__(self, state: State, sock: socket.socket) -> None:
        self.state = state
        self.sock = sock
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.state.datagrams[self.name] = self.state.datagrams.get(self.name, 0) + 1
        self.answer(data, addr)

    def answer(self, data: bytes, addr: tuple[Any, ...]) -> None:
        """Act on one datagram."""
        raise NotImplementedError


class UdpEcho(Datagrams):
    """Sends each datagram back."""

    name = "udp_echo"

    def answer(self, data: bytes, addr: tuple[Any, ...]) -> None:
        # Not by the transport: that takes an empty datagram for nothing to do.
        with contextlib.suppress(BlockingIOError):
            self.sock.sendto(data, addr)


class UdpWhoAmI(Datagrams):
    """Answers with the sender's address and port as it sees them: `ADDRESS PORT`."""

    name = "udp_whoami"

    def answer(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.transport.sendto(f"{unmapped(addr[0])} {addr[1]}".encode(), addr)


class UdpOther(Datagrams):
    """Answers from another port than it was asked at, as a TFTP server does."""

    name = "udp_other"

    def __init__(self, state: State, sock: socket.socket) -> None:
        super().__init__(state, sock)
        self.other = bound(socket.SOCK_DGRAM)

    def answer(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.other.sendto(data, addr)

    def connection_lost(self, exc: Exception | None) -> None:
        self.other.close()


def unmapped(address: str) -> str:
    """An IPv4 address as it is known, also where a socket for both families reports it as IPv6."""
    return address.removeprefix("::ffff:")


DATAGRAM_BUFFER = 4_194_304
"""Bytes that the sockets of the datagram services ask for: some thousands of datagrams of a call."""


def bound(kind: socket.SocketKind) -> socket.socket:
    """A socket on a free port of every address of both families (of IPv4 where there is no IPv6)."""
    try:
        sock = socket.socket(socket.AF_INET6, kind)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind(("::", 0))
    except OSError:
        sock = socket.socket(socket.AF_INET, kind)
        sock.bind(("0.0.0.0", 0))
    sock.setblocking(False)
    return sock


async def hold(listener: socket.socket, state: State) -> None:
    """Accept and never read: the server of the slow-reader tests."""
    loop = asyncio.get_running_loop()
    held = []
    while True:
        accepted, _ = await loop.sock_accept(listener)
        state.opened("sink")
        held.append(accepted)


def http(state: State) -> web.Application:
    """The HTTP server."""
    gates: collections.defaultdict[str, asyncio.Event] = collections.defaultdict(asyncio.Event)

    async def get_bytes(request: web.Request) -> web.StreamResponse:
        size = int(request.match_info["size"])
        response = web.StreamResponse(headers={"Content-Type": "application/octet-stream"})
        response.content_length = size
        await response.prepare(request)
        gate = request.query.get("gate")
        left = size
        with contextlib.suppress(ConnectionError):
            for piece in body(size):
                if gate and left <= size // 2:
                    await gates[gate].wait()
                await response.write(piece)
                left -= len(piece)
        return response

    async def open_gate(request: web.Request) -> web.Response:
        gates[request.match_info["name"]].set()
        return web.Response()

    async def put_bytes(request: web.Request) -> web.Response:
        digest = hashlib.sha256()
        size = 0
        async for piece in request.content.iter_any():
            digest.update(piece)
            size += len(piece)
        return web.json_response({"bytes": size, "sha256": digest.hexdigest()})

    async def get_state(request: web.Request) -> web.Response:
        return web.json_response(vars(state))

    async def get_whoami(request: web.Request) -> web.Response:
        return web.json_response({"address": unmapped(request.remote or ""), "host": request.host})

    application = web.Application(client_max_size=0)
    application.add_routes(
        [
            web.get("/bytes/{size}", get_bytes),
            web.post("/gates/{name}", open_gate),
            web.put("/upload", put_bytes),
            web.get("/state", get_state),
            web.get("/whoami", get_whoami),
        ]
    )
    return application


STREAMS: list[type[Connection]] = [Echo, Discard, Hash, FinishFirst, Reset, Source]
DATAGRAMS: list[type[Datagrams]] = [UdpEcho, UdpWhoAmI, UdpOther]


async def serve() -> None:
    """Bind everything, print the ports, serve until standard input ends."""
    loop = asyncio.get_running_loop()
    state = State()
    ports: dict[str, int] = {}

    def listener(name: str) -> socket.socket:
        sock = bound(socket.SOCK_STREAM)
        sock.listen(4096)
        ports[name] = sock.getsockname()[1]
        return sock

    for stream in STREAMS:
        await loop.create_server(
            functools.partial(stream, state), sock=listener(stream.name), backlog=4096
        )
    for datagrams in DATAGRAMS:
        sock = bound(socket.SOCK_DGRAM)
        # What the target itself is too slow to take must not count as lost.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, DATAGRAM_BUFFER)
        ports[datagrams.name] = sock.getsockname()[1]
        await loop.create_datagram_endpoint(functools.partial(datagrams, state, sock), sock=sock)

    sink = listener("sink")
    # Small, so that what a held connection swallows is known: the tunnel has to stop soon.
    sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
    holding = loop.create_task(hold(sink, state))

    runner = web.AppRunner(http(state), access_log=None)
    await runner.setup()
    await web.SockSite(runner, listener("http"), backlog=4096).start()

    print(json.dumps(ports), flush=True)
    await loop.run_in_executor(None, sys.stdin.buffer.read)
    holding.cancel()
    await runner.cleanup()


def main(arguments: list[str]) -> None:
    match arguments:
        case ["serve"]:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())
        case ["generate", size]:
            for piece in body(int(size)):
                sys.stdout.buffer.write(piece)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
