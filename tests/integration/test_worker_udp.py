"""UDP associations through a gateway worker and an endpoint worker, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.ipc import Credit, Drain, Drained
from socks_tunnel.protocol.messages import UdpAssociateClosed, UdpPacket
from socks_tunnel.protocol.socks5 import parse_udp_packet, udp_header
from socks_tunnel_workers.relay import udp as udp_relay
from support.worker_pair import LINK, Pair, Side, counted, worker_pair


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with worker_pair(tmp_path) as running:
        yield running


class Client:
    """A SOCKS client with an association."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.setblocking(False)
        self.sock.bind(("127.0.0.1", 0))
        self.relay = ("", 0)
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def associate(self, hint: bytes = b"\x01" + bytes(6)) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.pair.port)
        self.writer.write(b"\x05\x01\x00\x05\x03\x00" + hint)
        reply = await self.reader.readexactly(12)
        assert reply[:6] == b"\x05\x00\x05\x00\x00\x01"
        self.relay = (socket.inet_ntoa(reply[6:10]), int.from_bytes(reply[10:], "big"))
        assert self.relay[0] == "127.0.0.1"
        assert self.relay[1]

    def send(self, host: str, port: int, data: bytes) -> None:
        self.sock.sendto(udp_header(HostPort(host, port)) + data, self.relay)

    async def receive(self) -> tuple[HostPort, bytes]:
        async with asyncio.timeout(60):
            packet = await asyncio.get_running_loop().sock_recv(self.sock, 65536)
        datagram = parse_udp_packet(packet)
        assert datagram.frag == 0
        return datagram.destination, packet[datagram.offset :]

    async def close(self) -> None:
        self.sock.close()
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def associated(pair: Pair, hint: bytes = b"\x01" + bytes(6)) -> AsyncIterator[Client]:
    client = Client(pair)
    await client.associate(hint)
    try:
        yield client
    finally:
        await client.close()


class Target(asyncio.DatagramProtocol):
    """Echoes, and remembers who it saw; `answer_from` answers from another socket."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []
        self.answer_from: socket.socket | None = None
        self.transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.seen.append(addr)
        if self.answer_from is not None:
            self.answer_from.sendto(data, addr)
        else:
            self.transport.sendto(data, addr)


@contextlib.asynccontextmanager
async def target(host: str = "127.0.0.1") -> AsyncIterator[tuple[Target, int]]:
    transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
        Target, local_addr=(host, 0)
    )
    try:
        yield protocol, transport.get_extra_info("sockname")[1]
    finally:
        transport.close()


def drops(pair: Pair, reason: str) -> int:
    return sum(
        counted(worker, "udp_dropped_total", reason)
        for worker in (pair.gateway_worker, pair.endpoint_worker)
    )


async def until_dropped(pair: Pair, reason: str, count: int = 1) -> None:
    async with asyncio.timeout(60):
        while drops(pair, reason) < count:
            await asyncio.sleep(0.005)
    assert drops(pair, reason) == count


@pytest.mark.parametrize(
    "hint", [b"\x01" + bytes(6), b"\x03\x010\x00\x00", b"\x04" + bytes(18), b"\x03\x00\x00\x00"]
)
async def test_echo_whatever_the_hint(pair: Pair, hint: bytes) -> None:
    async with target() as (_, port), associated(pair, hint) as client:
        client.send("127.0.0.1", port, b"hello")
        assert await client.receive() == (HostPort("127.0.0.1", port), b"hello")


async def test_ipv6_and_names_as_destinations(pair: Pair) -> None:
    async with associated(pair) as client:
        async with target("::1") as (_, port):
            client.send("::1", port, b"six")
            assert await client.receive() == (HostPort("::1", port), b"six")
        async with target() as (_, port):
            client.send("localhost", port, b"by name")
            sender, data = await client.receive()
            assert (sender, data) == (HostPort("127.0.0.1", port), b"by name")


async def test_mapping_is_endpoint_independent(pair: Pair) -> None:
    async with target() as (one, port_one), target() as (two, port_two), associated(pair) as client:
        client.send("127.0.0.1", port_one, b"1")
        await client.receive()
        client.send("127.0.0.1", port_two, b"2")
        await client.receive()
        assert one.seen == two.seen


@pytest.mark.parametrize(
    ("filtering", "passes_port", "passes_host"),
    [
        ("endpoint-independent", True, True),
        ("address-dependent", True, False),
        ("address-and-port-dependent", False, False),
    ],
)
async def test_filtering(
    tmp_path: Path, filtering: str, passes_port: bool, passes_host: bool
) -> None:
    config = f'udp_filtering = "{filtering}"\n'
    async with worker_pair(tmp_path, endpoint=config) as pair:
        dropped = 0
        for host, passes in (("127.0.0.1", passes_port), ("127.0.0.2", passes_host)):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                other.bind((host, 0))
                async with target() as (server, port), associated(pair) as client:
                    server.answer_from = other
                    client.send("127.0.0.1", port, b"who answers?")
                    if passes:
                        sender, _ = await client.receive()
                        assert sender == HostPort(*other.getsockname())
                    else:
                        dropped += 1
                        await until_dropped(pair, "filtered", dropped)


async def test_fragments_are_dropped_and_counted(pair: Pair) -> None:
    async with target() as (server, port), associated(pair) as client:
        packet = bytearray(udp_header(HostPort("127.0.0.1", port)) + b"x")
        packet[2] = 1
        client.sock.sendto(packet, client.relay)
        await until_dropped(pair, "fragment")
        assert server.seen == []


async def test_only_the_pinned_sender_is_heard(pair: Pair) -> None:
    async with target() as (server, port), associated(pair) as client:
        client.send("127.0.0.1", port, b"mine")
        await client.receive()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.1", 0))
            stranger.sendto(udp_header(HostPort("127.0.0.1", port)) + b"theirs", client.relay)
            await until_dropped(pair, "foreign-source")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.3", 0))
            stranger.sendto(udp_header(HostPort("127.0.0.1", port)) + b"theirs", client.relay)
            await until_dropped(pair, "foreign-source", 2)
        assert len(server.seen) == 1


async def test_first_sender_must_have_the_clients_address(pair: Pair) -> None:
    async with target() as (server, port), associated(pair) as client:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.bind(("127.0.0.3", 0))
            stranger.sendto(udp_header(HostPort("127.0.0.1", port)) + b"theirs", client.relay)
            await until_dropped(pair, "foreign-source")
        client.send("127.0.0.1", port, b"mine")
        await client.receive()
        assert len(server.seen) == 1


async def test_policy_per_destination(pair: Pair) -> None:
    async with associated(pair) as client:
        client.send("10.9.8.7", 53, b"no")
        await until_dropped(pair, "policy")
        client.send("10.9.8.7", 53, b"no")
        await until_dropped(pair, "policy", 2)
        decided = counted(pair.endpoint_worker, "policy_decisions_total", "denied")
        assert decided == 1, "decided once, then remembered"


async def test_largest_datagrams(pair: Pair) -> None:
    async with target() as (_, port), associated(pair) as client:
        data = bytes(65_507 - 10)
        client.send("127.0.0.1", port, data)
        assert await client.receive() == (HostPort("127.0.0.1", port), data)


async def test_association_ends_with_its_control_connection(pair: Pair) -> None:
    pair.gateway.recording = True
    async with associated(pair) as client:
        assert len(list(pair.endpoint_worker.flows())) == 1
        client.writer.close()
        assert (await pair.gateway.message(UdpAssociateClosed)).reason == 0
        async with asyncio.timeout(60):
            while list(pair.endpoint_worker.flows()):
                await asyncio.sleep(0.005)
    clients = pair.gateway_worker.clients
    async with asyncio.timeout(60):
        while clients.opening or clients.associations.clients:
            await asyncio.sleep(0.005)


async def test_closed_by_the_endpoint_closes_the_control_connection(pair: Pair) -> None:
    async with associated(pair) as client:
        (flow,) = pair.endpoint_worker.flows()
        flow.abort(0x11)
        async with asyncio.timeout(60):
            assert await client.reader.read() == b""


async def test_idle_associations_end(tmp_path: Path) -> None:
    async with worker_pair(tmp_path, gateway="[socks]\nidle_udp = 1\n") as pair:
        pair.gateway.recording = True
        async with associated(pair) as client:
            async with asyncio.timeout(60):
                assert await client.reader.read() == b""
            assert (await pair.gateway.message(UdpAssociateClosed)).reason == 0x11


@pytest.mark.parametrize("side", ["gateway", "endpoint"])
async def test_a_drain_waits_for_datagrams_and_not_for_silence(
    pair: Pair, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp_relay, "DRAIN_IDLE_MAX", 3.0)
    drained: Side = getattr(pair, side)
    worker = getattr(pair, f"{side}_worker")
    async with target() as (_, port), associated(pair) as talking, associated(pair) as silent:

        async def echo(client: Client) -> None:
            client.send("127.0.0.1", port, b"x")
            assert (await client.receive())[1] == b"x"

        await echo(silent)
        await echo(talking)
        drained.send_control(0, Drain())
        async with asyncio.timeout(60):
            while len(list(worker.flows())) == 2:
                await echo(talking)
                await asyncio.sleep(0.1)
            assert await silent.reader.read() == b""
        await echo(talking)
        await drained.control(Drained)
        assert not list(worker.flows())


async def test_associations_per_client_are_limited(tmp_path: Path) -> None:
    config = "[limits]\nassociations_per_client = 2\n"
    async with (
        worker_pair(tmp_path, gateway=config) as pair,
        associated(pair),
        associated(pair),
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
        writer.write(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        assert (await reader.readexactly(12))[3] == 1
        writer.close()


async def test_without_credit_a_datagram_is_dropped_after_50_ms(pair: Pair) -> None:
    async with target() as (server, port), associated(pair) as client:
        link = pair.gateway_worker.sessions[LINK]
        pair.gateway.keep_credit = True
        link.scheduler.credit = link.scheduler.floor
        client.send("127.0.0.1", port, b"late")
        async with asyncio.timeout(60):
            while link.scheduler.idle:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.06)  # the age itself is what is tested
        pair.gateway.send_control(LINK, Credit(10_000, 16_384, 0))
        await until_dropped(pair, "expired")
        client.send("127.0.0.1", port, b"in time")
        assert (await client.receive())[1] == b"in time"
        assert len(server.seen) == 1


async def test_datagrams_of_an_unknown_flow_are_counted(pair: Pair) -> None:
    packet = udp_header(HostPort("127.0.0.1", 9)) + b"x"
    pair.endpoint.send_message(LINK, UdpPacket(1234, packet).encode())
    await until_dropped(pair, "unknown-flow")
