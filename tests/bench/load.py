"""Load through the whole tunnel: the same commands as rawpeer.py's, as a SOCKS5 client carries them out.

    load.py PROXY_PORT TARGET_ADDRESS PORTS     PORTS: the target servers' ports by name, as JSON

With 0 as PROXY_PORT there is no SOCKS: a connection to each of PORTS is one to its target.
Plain sockets in one thread, because the client shares two cores with all that it measures.
"""

import asyncio
import contextlib
import functools
import json
import select
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from typing import Any, cast

import uvloop

WARM_UP = 2.0
GREETING = b"\x05\x01\x00"
REPLY_LENGTH = 10  # of a reply with an IPv4 address (RFC 1928 section 6)
SO_TIMESTAMPNS = 35  # in asm-generic/socket.h; also the type of the control message


def request(command: int, address: str, port: int) -> bytes:
    """A request for an IPv4 address (RFC 1928 section 4)."""
    return b"\x05" + bytes([command]) + b"\x00\x01" + socket.inet_aton(address) + port.to_bytes(2)


def exactly(sock: socket.socket, length: int) -> bytes:
    """Read that many bytes."""
    data = b""
    while len(data) < length:
        piece = sock.recv(length - len(data))
        if not piece:
            raise ConnectionError(f"closed after {len(data)} of {length} bytes")
        data += piece
    return data


class Opening(asyncio.Protocol):
    """Opens connections one after another: SOCKS handshake, one byte there and back, close."""

    def __init__(self, load: "Load", done: asyncio.Future[None]) -> None:
        self.load = load
        self.done = done
        self.step = 0
        self.data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.load.is_direct:
            self.step = 2
            self.transport.write(b"x")
        else:
            self.transport.write(GREETING)

    def data_received(self, data: bytes) -> None:
        self.data += data
        if self.step == 0 and len(self.data) >= 2:
            self.step = 1
            self.data = self.data[2:]
            self.transport.write(request(1, self.load.target, self.load.ports["echo"]))
        if self.step == 1 and len(self.data) >= REPLY_LENGTH:
            if self.data[1]:
                self.done.set_exception(ConnectionError(f"reply {self.data[1]}"))
                self.transport.abort()
                return
            self.step = 2
            self.data = self.data[REPLY_LENGTH:]
            self.transport.write(b"x")
        if self.step == 2 and self.data:
            self.load.opened += 1
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            if exc is None and self.step == 2 and self.data:
                self.done.set_result(None)
            else:
                self.done.set_exception(exc or ConnectionError("closed early"))


class Load:
    """Carries out the harness's commands."""

    def __init__(self, proxy_port: int, target: str, ports: dict[str, int]) -> None:
        self.is_direct = not proxy_port
        self.proxy = ("127.0.0.1", proxy_port)
        self.target = target
        self.ports = ports
        self.opened = 0
        self.held: list[socket.socket] = []

    def connect(self, name: str) -> socket.socket:
        """A connection to a target server through the tunnel."""
        address = (self.target, self.ports[name]) if self.is_direct else self.proxy
        sock = socket.create_connection(address, timeout=60)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self.is_direct:
            return sock
        sock.sendall(GREETING)
        exactly(sock, 2)
        sock.sendall(request(1, self.target, self.ports[name]))
        reply = exactly(sock, REPLY_LENGTH)
        if reply[1]:
            raise ConnectionError(f"reply {reply[1]}")
        return sock

    def throughput(self, direction: str, flows: int, seconds: float) -> dict[str, Any]:
        down = direction == "down"
        socks = [self.connect("source" if down else "discard") for _ in range(flows)]
        buffer = memoryview(bytearray(1 << 20))
        block = memoryview(bytes(range(256)) * 1024)
        moved = 0
        with selectors.EpollSelector() as selector:
            for sock in socks:
                sock.setblocking(False)
                selector.register(sock, selectors.EVENT_READ if down else selectors.EVENT_WRITE)
            start = time.perf_counter() + WARM_UP
            before = None
            while (now := time.perf_counter()) < start + seconds:
                if before is None and now >= start:
                    start, before = now, moved
                for key, _ in selector.select(0.5):
                    sock = cast("socket.socket", key.fileobj)
                    if down:
                        count = sock.recv_into(buffer)
                        if not count:
                            raise ConnectionError("the download ended")
                        moved += count
                    else:
                        moved += sock.send(block)
            rate = (moved - (before or 0)) * 8 / (time.perf_counter() - start) / 1e6
        for sock in socks:
            # Closed with a reset: what is on its way is not worth waiting for.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        return {"mbps": rate}

    def mix(self, down: int, up: int, seconds: float, lead: float) -> dict[str, Any]:
        """Downloads and uploads side by side: what each of them moves, in Mbit/s.

        Begins to count after `lead` seconds. An upload is counted as it enters the socket.
        """
        flows = [("down", self.connect("source")) for _ in range(down)]
        flows += [("up", self.connect("discard")) for _ in range(up)]
        buffer, block = memoryview(bytearray(1 << 18)), memoryview(bytes(65_536))
        moved = [0] * len(flows)
        with selectors.EpollSelector() as selector:
            for number, (direction, sock) in enumerate(flows):
                sock.setblocking(False)
                wanted = selectors.EVENT_READ if direction == "down" else selectors.EVENT_WRITE
                selector.register(sock, wanted, number)
            begun = time.perf_counter()
            before: list[int] | None = None
            while (now := time.perf_counter()) < begun + lead + seconds:
                if before is None and now >= begun + lead:
                    started, before = now, list(moved)
                for key, _ in selector.select(0.1):
                    direction, sock = flows[key.data]
                    count = sock.recv_into(buffer) if direction == "down" else sock.send(block)
                    if not count:
                        raise ConnectionError("a transfer ended")
                    moved[key.data] += count
            took = time.perf_counter() - started
        assert before is not None
        rates = [(a - b) * 8 / took / 1e6 for a, b in zip(moved, before, strict=True)]
        for _, sock in flows:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()
        return {"down": rates[:down], "up": rates[down:]}

    def round_trip(self, count: int, size: int) -> dict[str, Any]:
        message = bytes(size)
        times = []
        with self.connect("echo") as sock:
            for _ in range(count):
                start = time.perf_counter()
                sock.send(message)
                exactly(sock, size)
                times.append(time.perf_counter() - start)
        times.sort()
        return {"p50_ms": times[count // 2] * 1e3, "p99_ms": times[count * 99 // 100] * 1e3}

    def opens(self, clients: int, seconds: float) -> dict[str, Any]:
        self.opened = 0
        address = (self.target, self.ports["echo"]) if self.is_direct else self.proxy

        async def client(end: float) -> None:
            loop = asyncio.get_running_loop()
            while time.perf_counter() < end:
                done: asyncio.Future[None] = loop.create_future()
                await loop.create_connection(functools.partial(Opening, self, done), *address)
                await done

        async def clients_together() -> None:
            end = time.perf_counter() + seconds
            async with asyncio.TaskGroup() as group:
                for _ in range(clients):
                    group.create_task(client(end))

        start = time.perf_counter()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(clients_together())
        return {"per_second": self.opened / (time.perf_counter() - start)}

    @contextlib.contextmanager
    def associated(self, port: int) -> Iterator[tuple[socket.socket, bytes]]:
        """A UDP association: a socket that is connected to its relay, and the header to the echo."""
        with socket.create_connection(self.proxy, timeout=60) as control:
            control.sendall(GREETING)
            exactly(control, 2)
            control.sendall(request(3, "0.0.0.0", 0))
            reply = exactly(control, REPLY_LENGTH)
            relay = (socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:10]))
            header = b"\0\0\0\1" + socket.inet_aton(self.target) + port.to_bytes(2)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                # What the client itself is too slow to take must not count as lost.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
                sock.connect(relay)
                yield sock, header

    def paced(self, size: int, rate: int, seconds: float, port: int) -> dict[str, Any]:
        """Datagrams at a steady rate to an echo (echo.py) and back, as calls send them.

        Each has the time of its departure in it; what comes back within a second counts. It has come
        when the kernel says so: this process and the echo may have to wait for a core until they can
        look, and that is no delay of the tunnel's. `late` is how long both have waited.
        """
        times: list[int] = []
        late: list[int] = []
        buffer = bytearray(65_536)
        with self.associated(port) as (sock, header):
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
            padding = bytes(size - 8)  # the first 8 bytes are for the echo
            sent = 0
            start = time.perf_counter()
            total = int(rate * seconds)
            while (now := time.perf_counter()) < start + seconds + 1 and len(times) < total:
                while sent < min(total, int((now - start) * rate)):
                    sock.send(header + struct.pack("!q", time.time_ns()) + padding)
                    sent += 1
                due = start + (sent + 1) / rate if sent < total else now + 0.1
                select.select((sock,), (), (), max(due - time.perf_counter(), 0))
                with contextlib.suppress(BlockingIOError):
                    while True:
                        _, ((_, _, stamp),), _, _ = sock.recvmsg_into((buffer,), 64)
                        second, nanosecond = struct.unpack("=qq", stamp)
                        came = second * 1_000_000_000 + nanosecond
                        left, there = struct.unpack_from("!qq", buffer, len(header))
                        late.append(time.time_ns() - came + there)
                        times.append(came - left - there)
        times.sort()
        late.sort()
        if not times:
            raise ConnectionError(f"none of {sent} datagrams came back")
        middle, high = len(times) // 2, len(times) * 99 // 100
        return {
            "lost": sent - len(times),
            "p50_ms": times[middle] / 1e6,
            "p99_ms": times[high] / 1e6,
            "late_p50_ms": late[middle] / 1e6,
            "late_p99_ms": late[high] / 1e6,
        }

    def datagrams(self, size: int, outstanding: int, seconds: float) -> dict[str, Any]:
        buffer = bytearray(65_536)
        received = 0
        with self.associated(self.ports["udp_echo"]) as (sock, header):
            packet = header + bytes(size)
            sock.settimeout(1)
            start = time.perf_counter()
            end = start + seconds
            for _ in range(outstanding):
                sock.send(packet)
            while time.perf_counter() < end:
                try:
                    sock.recv_into(buffer)
                except TimeoutError:
                    # Everything that was on its way is lost: begin again.
                    for _ in range(outstanding):
                        sock.send(packet)
                    continue
                received += 1
                sock.send(packet)
            rate = received / (time.perf_counter() - start)
        return {"per_second": rate}

    def idle(self, flows: int) -> dict[str, Any]:
        self.held = [self.connect("echo") for _ in range(flows)]
        return {"open": len(self.held)}

    def check(self) -> dict[str, Any]:
        """Send a byte over every idle flow, and count those that bring it back."""
        alive = 0
        # In batches: what is asked is whether they live, not what a burst does.
        for first in range(0, len(self.held), 100):
            batch = self.held[first : first + 100]
            for sock in batch:
                with contextlib.suppress(OSError):
                    sock.send(b"x")
            for sock in batch:
                with contextlib.suppress(OSError):
                    alive += sock.recv(1) == b"x"
        for sock in self.held:
            sock.close()
        return {"alive": alive}


def main(proxy_port: str, target: str, ports: str) -> None:
    load = Load(int(proxy_port), target, json.loads(ports))
    actions: dict[str, Any] = {
        "throughput": load.throughput,
        "mix": load.mix,
        "round-trip": load.round_trip,
        "open": load.opens,
        "datagrams": load.datagrams,
        "paced": load.paced,
        "idle": load.idle,
        "check": load.check,
    }
    for line in sys.stdin:
        command = json.loads(line)
        name = command.pop("do")
        if name == "quit":
            return
        print(json.dumps(actions[name](**command)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
