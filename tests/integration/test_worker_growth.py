"""Workers that have served many clients hold what they held after the first ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from socks_tunnel.protocol.addresses import HostPort, encode_address
from socks_tunnel.protocol.socks5 import udp_header
from support.compiled import pure_only
from support.growth import grown_each_time, held
from support.worker_pair import LINK, Pair, link_down, link_up, worker_pair

EACH = 12
"""Clients of each kind in a round."""

REMEMBERED = ("Policy._known", "RouteTable._known", "Decision", "HostPort", "Match")
"""What is remembered of destinations: at most DECISIONS_MAX and MATCHES_MAX of them, which unit tests
hold, and what these consist of."""


# Both tests walk from object to object by their attributes, which a compiled class does not list.
pytestmark = pure_only(
    "socks_tunnel_workers.relay.session", because="attributes of its objects cannot be listed"
)


class Round:
    """Everything that clients do, with destinations that no other round has."""

    def __init__(self, pair: Pair, number: int, stream: int, echo: int) -> None:
        self.pair = pair
        self.number = number
        self.stream = stream
        self.echo = echo

    def addresses(self) -> Iterator[str]:
        for each in range(EACH):
            yield f"127.{self.number}.7.{each + 1}"

    async def run(self) -> None:
        for address in self.addresses():
            await self.exchange(b"\x05\x01\x00" + self.request(address, self.stream), b"hello")
            await self.exchange(b"\x05\x01\x00" + self.request("192.0.2.1", self.number), b"")
            nowhere = b"\x03" + bytes((12,)) + b"n%03d.invalid" % self.number + b"\0\x50"
            await self.exchange(b"\x05\x01\x00\x05\x01\x00" + nowhere, b"")
            await self.exchange(b"\x05\x01\x00\x05\x09\x00" + bytes(8), b"")  # no such command
            await self.exchange(b"%d" % self.number, b"")  # no protocol at all
            head = f"CONNECT {address}:{self.stream} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
            await self.exchange(head, b"hello")
            await self.exchange(b"GET http://%s:1/ HTTP/1.1\r\n\r\n" % address.encode(), b"")
            socks4 = b"\x04\x01" + self.stream.to_bytes(2, "big") + socket.inet_aton(address)
            await self.exchange(socks4 + b"name\0", b"hello")
            await self.associate()

    def request(self, host: str, port: int) -> bytes:
        return b"\x05\x01\x00" + encode_address(HostPort(host, port))

    async def exchange(self, first: bytes, rest: bytes) -> None:
        """Sends, and reads to the end of the connection."""
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.pair.port)
            writer.write(first + rest)
            with contextlib.suppress(ConnectionError):
                if writer.can_write_eof():
                    writer.write_eof()
                while await reader.read(4096):
                    pass
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def associate(self) -> None:
        """Opens a UDP association, and sends to an echo, to a name and to what is refused."""
        async with asyncio.timeout(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.pair.port)
            writer.write(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
            reply = await reader.readexactly(12)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.setblocking(False)
                client.bind(("127.0.0.1", 0))
                relay = (socket.inet_ntoa(reply[6:10]), int.from_bytes(reply[10:], "big"))
                for host, port in (
                    (f"n{self.number}.invalid", 53),
                    ("192.0.2.1", 1000 + self.number),
                    ("127.0.0.1", self.echo),
                ):
                    client.sendto(udp_header(HostPort(host, port)) + b"hello", relay)
                await asyncio.get_running_loop().sock_recv(client, 2048)
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


class Echo(asyncio.DatagramProtocol):
    """Sends each datagram back."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


async def echo_stream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(4096):
            writer.write(data)
    writer.close()


async def idle(pair: Pair) -> None:
    """Waits until no flow is left."""
    workers = pair.gateway_worker, pair.endpoint_worker
    async with asyncio.timeout(60):
        while any(
            len(session.core.flows) or session.lingering
            for worker in workers
            for session in worker.sessions.values()
        ):
            await asyncio.sleep(0.01)


async def relinked(pair: Pair, number: int) -> None:
    """Ends the session and begins another one."""
    for side, peer in ((pair.gateway, "office"), (pair.endpoint, "laptop")):
        link_down(side, LINK + number - 1)
        link_up(side, peer, link=LINK + number)
    async with asyncio.timeout(60):
        while not all(
            list(worker.sessions) == [LINK + number]
            for worker in (pair.gateway_worker, pair.endpoint_worker)
        ):
            await asyncio.sleep(0.01)


async def test_clients_that_are_gone_leave_nothing(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo_stream, "0.0.0.0", 0)
    stream = server.sockets[0].getsockname()[1]
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=("0.0.0.0", 0))
    echo = transport.get_extra_info("sockname")[1]
    sizes = []
    async with worker_pair(tmp_path) as pair:
        for number in range(1, 5):
            await Round(pair, number, stream, echo).run()
            await idle(pair)
            await relinked(pair, number)
            workers = pair.gateway_worker, pair.endpoint_worker
            for worker in workers:  # else what a first second has counted appears in a later round
                worker.upkeep.flush_metrics()
            sizes.append(held(*workers))
    server.close()
    transport.close()
    assert not grown_each_time(sizes[1:], REMEMBERED)


async def test_what_is_left_behind_is_seen(tmp_path: Path) -> None:
    async with worker_pair(tmp_path) as pair:
        sizes = []
        for number in range(3):
            sizes.append(held(pair.gateway_worker))
            pair.gateway_worker.sessions[LINK].core.closed[99 + number] = 0
    assert grown_each_time(sizes, REMEMBERED) == {"Session.closed": ["0 to 1", "1 to 2"]}
