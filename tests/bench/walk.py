"""What the way of a byte costs between sockets and transports: copies, Python calls and wake-ups.

    python -m bench.walk [--messages 400] [--size 16384] [--connections 50]

A gateway worker and an endpoint worker, their IPC streams and both supervisors' routing run on one
event loop of asyncio (whose steps can be counted, unlike uvloop's), with a direct connection in
place of the transports. Each room's Python functions are counted per message: first a download of
bulk, then an echo of one byte. Then they are counted per connection: handshake, request, an echo of
one byte, close. Last, one message goes there and back, and the places in memory at which it stood are
counted: those that the kernel read it to, and those that it was copied to. `docs/architecture.md` has
the way in words.
"""

import argparse
import asyncio
import collections
import ctypes
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

from prometheus_client import CollectorRegistry

from socks_tunnel.config.for_workers import dump
from socks_tunnel.config.loader import load
from socks_tunnel.ipc.stream import Channel, connect
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.ipc import Attached, ChildHello, ChildReady, Configure, Control
from socks_tunnel.protocol.messages import Resume
from socks_tunnel.supervisor.ports import LinkTerms
from socks_tunnel.supervisor.router import Router, WorkerRoutes
from socks_tunnel.supervisor.routing import AttachedLink
from socks_tunnel_workers.worker import Worker
from support.worker_pair import write_configs

ROOMS = ("frontends", "relay", "targets", "protocol", "ipc", "supervisor", "services", "worker")


class Wire:
    """One direction of a link without a network: delivered in the next turn of the loop."""

    rtt = 0.001

    def __init__(self) -> None:
        self.attached: AttachedLink
        self.other: Wire
        self._batch: list[bytes] = []

    def send_many(self, messages: list[bytes]) -> None:
        if not self._batch:
            asyncio.get_running_loop().call_soon(self._deliver)
        self._batch += messages

    def send_resume(self, resume: Resume) -> None:
        asyncio.get_running_loop().call_soon(lambda: self.other.attached.resume(resume))

    def _deliver(self) -> None:
        batch, self._batch = self._batch, []
        self.other.attached.messages(batch)
        self.attached.drained(sum(map(len, batch)))


class WorkerEnd(Channel):
    """The supervisor's end of one worker's stream, as `supervisor/children.py` has it."""

    def __init__(self) -> None:
        super().__init__()
        self.routes = WorkerRoutes()
        self.ready = asyncio.Event()
        self.hello = asyncio.Event()

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        self.routes.from_worker(session, messages)

    def on_control(self, session: int, message: Control) -> None:
        match message:
            case ChildHello():
                self.hello.set()
            case ChildReady():
                self.ready.set()
            case Attached():
                self.routes.attached(session, message)


async def host(
    role: str, config: Path, listening: Sequence[socket.socket]
) -> tuple[Router, Worker]:
    """Starts one host: a worker, its stream, and the routing."""
    ours, theirs = socket.socketpair()
    end = await connect(ours, WorkerEnd)
    sockets = {sock.fileno(): sock for sock in listening}
    worker = await connect(theirs, lambda: Worker(0, sockets, lambda _status: None))
    await end.hello.wait()
    rows = [[sock.fileno(), "socks", "", 0] for sock in listening]
    end.send_control(0, Configure(1, dump(load(config)), rows))
    await end.ready.wait()
    router = Router(
        opens=role == "gateway",
        worker_count=1,
        flows_per_worker=1000,
        metrics=Metrics(CollectorRegistry()),
        on_abuse=lambda _link, reason: sys.exit(reason),
        clock=time.monotonic,
        resume_timeout=60.0,
    )
    end.routes = router.worker_up(0, end)
    end.hand_messages_to(end.routes.from_worker)  # as supervisor/children.py does
    return router, worker


class Counter:
    """Counts Python calls by room, and the event loop's wake-ups."""

    def __init__(self) -> None:
        self.calls: collections.Counter[str] = collections.Counter()
        self.turns = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _event(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call":
            return
        path = frame.f_code.co_filename
        if frame.f_code.co_name == "_run_once":
            self.turns += 1
        elif "socks_tunnel" in path:
            name = path.split("socks_tunnel_workers/")[-1].split("socks_tunnel/")[-1]
            room = name.split("/", maxsplit=1)[0].removesuffix(".py")
            self.calls[room if room in ROOMS else "other"] += 1


class Places:
    """Where in memory a payload has stood, as our functions were given it.

    Everything that has it is kept alive, so that no address is used twice. What the event loop and
    the libraries copy for themselves is not seen: uvloop writes the pieces of a batch with one
    system call, and the loop that is used here joins them.
    """

    def __init__(self, mark: bytes) -> None:
        self.mark = mark
        self.read = 0
        """To how many places the kernel has read it, of those that our functions were given."""
        self.copies: list[str] = []
        """The functions that handed on a copy, in order."""
        self._kept: list[object] = []
        self._filled: set[int] = set()
        self._seen: set[int] = set()
        self._recv = socket.socket.recv
        self._recv_into = socket.socket.recv_into

    def __enter__(self) -> Self:
        places = self

        def recv(sock: socket.socket, *arguments: Any) -> bytes:
            data = places._recv(sock, *arguments)
            places._filled.update(places._find(data))
            return data

        def recv_into(sock: socket.socket, buffer: Any, *arguments: Any) -> int:
            count = places._recv_into(sock, buffer, *arguments)
            places._filled.update(places._find(memoryview(buffer)[:count]))
            return count

        socket.socket.recv = recv  # type: ignore[method-assign, assignment]
        socket.socket.recv_into = recv_into  # type: ignore[method-assign, assignment]
        sys.setprofile(self._event)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)
        socket.socket.recv = self._recv  # type: ignore[method-assign]
        socket.socket.recv_into = self._recv_into  # type: ignore[method-assign]

    def _find(self, value: object) -> list[int]:
        """Returns the address of the payload, if it is in the value."""
        if not isinstance(value, bytes | bytearray | memoryview):
            return []
        offset = bytes(value).find(self.mark)
        if offset < 0:
            return []
        self._kept.append(value)
        view = PyBuffer()
        get_buffer(ctypes.py_object(value), ctypes.byref(view), 0)
        release_buffer(ctypes.byref(view))
        return [view.buf + offset]

    def _event(self, frame: FrameType, event: str, _argument: object) -> None:
        code = frame.f_code
        if event != "call" or not (
            "socks_tunnel" in code.co_filename or code.co_qualname.startswith("Wire.")
        ):
            return
        for value in list(frame.f_locals.values()):
            for each in value if isinstance(value, list | tuple) else (value,):
                for address in self._find(each):
                    if address in self._seen:
                        continue
                    self._seen.add(address)
                    if address in self._filled:
                        self.read += 1
                    else:
                        assert frame.f_back is not None
                        self.copies.append(frame.f_back.f_code.co_qualname)


class PyBuffer(ctypes.Structure):
    """Py_buffer of the C API."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.py_object),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_char_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


get_buffer = ctypes.pythonapi.PyObject_GetBuffer
release_buffer = ctypes.pythonapi.PyBuffer_Release


SERVED = asyncio.Event()
"""Set when the target's connection has ended."""


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A target: `b` and a number asks for so many bytes, anything else is an echo."""
    while line := await reader.readline():
        if line.startswith(b"b"):
            writer.write(bytes(int(line[1:])))
        else:
            writer.write(line)
        await writer.drain()
    writer.close()
    SERVED.set()


def show(what: str, counter: Counter, messages: int, each: str = "message") -> None:
    total = sum(counter.calls.values())
    rooms = ", ".join(
        f"{room} {counter.calls[room] / messages:.1f}" for room in ROOMS if counter.calls[room]
    )
    print(
        f"{what}: {total / messages:.1f} Python calls and {counter.turns / messages:.2f} turns of "
        f"the loop a {each} ({rooms})"
    )


def request(port: int) -> bytes:
    """Returns a SOCKS5 greeting and a CONNECT to that port of loopback."""
    return b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2)


async def connection(proxy: int, target: int, routers: Sequence[Router]) -> None:
    """Opens a connection, has one byte echoed, and waits until nobody knows of it any more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy)
    writer.write(request(target))
    await reader.readexactly(12)
    writer.write(b"\n")
    await reader.readexactly(1)
    writer.close()
    while any(router.flows for router in routers):
        await asyncio.sleep(0)


async def walk(messages: int, size: int, connections: int) -> None:
    """Drives both ways and prints what they cost."""
    with tempfile.TemporaryDirectory() as name:
        files = write_configs(Path(name))
        listening = socket.create_server(("127.0.0.1", 0))
        gateway, _ = await host("gateway", files[0], [listening])
        endpoint, _ = await host("endpoint", files[1], [])
        one, two = Wire(), Wire()
        one.other, two.other = two, one
        terms = LinkTerms(b"s" * 16, 262_144, 65_529, 300, ("udp", "bind", "resume"), resume=True)
        one.attached = gateway.attach(one, "office", terms)
        two.attached = endpoint.attach(two, "laptop", terms)
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
        writer.write(request(port))
        await reader.readexactly(12)
        count: Callable[[], Counter] = Counter
        writer.write(b"b%d\n" % (64 * size))
        await reader.readexactly(64 * size)  # warm
        with count() as bulk:
            writer.write(b"b%d\n" % (messages * size))
            await reader.readexactly(messages * size)
        show(f"download, {messages} messages of {size} bytes", bulk, messages)
        with count() as echo:
            for _ in range(messages):
                writer.write(b"\n")
                await reader.readexactly(1)
        show(f"echo of one byte, {messages} there and back", echo, messages)
        payload = (b"echo" + os.urandom(size // 2).hex().encode())[: size - 1] + b"\n"
        with Places(payload[:64]) as places:
            writer.write(payload)
            await reader.readexactly(len(payload))
        print(
            f"one message of {size} bytes, there and back: {places.read} places that the kernel "
            f"read it to, {len(places.copies)} copies, in {', '.join(places.copies)}"
        )
        writer.close()
        await SERVED.wait()
        where = listening.getsockname()[1], port, (gateway, endpoint)
        await connection(*where)  # warm
        with count() as opened:
            for _ in range(connections):
                await connection(*where)
        show(f"{connections} connections one by one", opened, connections, "connection")
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench.walk")
    parser.add_argument("--messages", type=int, default=400)
    parser.add_argument("--size", type=int, default=16_384)
    parser.add_argument("--connections", type=int, default=50)
    arguments = parser.parse_args()
    asyncio.run(walk(arguments.messages, arguments.size, arguments.connections))


if __name__ == "__main__":
    main()
