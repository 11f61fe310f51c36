"""Static forwards through a gateway worker and an endpoint worker, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from support.worker_pair import Pair, counted, link_up, worker_pair


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()


@contextlib.asynccontextmanager
async def tcp_forward(
    directory: Path,
    target: tuple[str, int] | None = None,
    *,
    linked: bool = True,
    gateway: str = "",
) -> AsyncIterator[tuple[Pair, int]]:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    target = target or server.sockets[0].getsockname()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        forwards = [(listening, "forward-tcp", target)]
        async with worker_pair(
            directory, listeners=forwards, linked=linked, gateway=gateway
        ) as pair:
            yield pair, listening.getsockname()[1]
    server.close()


class Target(asyncio.DatagramProtocol):
    """Echoes, and remembers who it saw."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int]] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.seen.append(addr)
        self.transport.sendto(data, addr)  # type: ignore[attr-defined]  # a datagram transport


@contextlib.asynccontextmanager
async def udp_forward(
    directory: Path,
    target: tuple[str, int] | None = None,
    *,
    linked: bool = True,
    gateway: str = "",
) -> AsyncIterator[tuple[Pair, tuple[str, int], Target]]:
    transport, server = await asyncio.get_running_loop().create_datagram_endpoint(
        Target, local_addr=("127.0.0.1", 0)
    )
    target = target or transport.get_extra_info("sockname")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listening:
        listening.bind(("127.0.0.1", 0))
        forwards = [(listening, "forward-udp", target)]
        async with worker_pair(
            directory, listeners=forwards, linked=linked, gateway=gateway
        ) as pair:
            yield pair, listening.getsockname(), server
    transport.close()


@contextlib.contextmanager
def udp_client(forward: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.connect(forward)
        yield client


async def receive(client: socket.socket) -> bytes:
    async with asyncio.timeout(60):
        return await asyncio.get_running_loop().sock_recv(client, 65536)


async def reset_by(port: int) -> None:
    """Connect, and wait to be reset: perhaps at once, so that even connecting fails."""
    with pytest.raises(ConnectionResetError):  # noqa: PT012 - either may raise
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            await reader.read()
        finally:
            writer.close()


async def until_dropped(pair: Pair, reason: str) -> None:
    async with asyncio.timeout(60):
        while not counted(pair.gateway_worker, "udp_dropped_total", reason):
            await asyncio.sleep(0.005)


async def test_tcp_forward(tmp_path: Path) -> None:
    async with tcp_forward(tmp_path) as (pair, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"no proxy here")
        writer.write_eof()
        assert await reader.read() == b"no proxy here"
        writer.close()
        async with asyncio.timeout(60):
            while list(pair.gateway_worker.flows()) or pair.gateway_worker.clients.opening:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("host", ["127.0.0.1", "10.1.2.3"])
async def test_tcp_forward_that_cannot_be_served_is_reset(tmp_path: Path, host: str) -> None:
    with socket.socket() as free:  # bound and not listening: refuses
        free.bind(("127.0.0.1", 0))
        target = (host, free.getsockname()[1])
        async with tcp_forward(tmp_path, target) as (pair, port):
            await reset_by(port)
            async with asyncio.timeout(60):
                while pair.gateway_worker.clients.opening:
                    await asyncio.sleep(0.005)


async def test_tcp_forward_waits_for_a_link_and_no_longer(tmp_path: Path) -> None:
    gateway = "[socks]\nconnect_timeout = 2\n"
    async with tcp_forward(tmp_path, linked=False, gateway=gateway) as (pair, port):
        await reset_by(port)
        link_up(pair.gateway, "office")
        link_up(pair.endpoint, "laptop")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"now")
        assert await reader.readexactly(3) == b"now"
        writer.close()


async def test_gateway_policy_is_for_forwards_too(tmp_path: Path) -> None:
    gateway = '[policy]\nallowed_hosts = ["10.0.0.0/8"]\nallowed_ports = ["*"]\n'
    async with tcp_forward(tmp_path, gateway=gateway) as (pair, port):
        pair.gateway.recording = True
        await reset_by(port)
        assert pair.gateway.sent == []


async def test_udp_forward_keeps_an_association_for_each_client(tmp_path: Path) -> None:
    async with udp_forward(tmp_path) as (pair, forward, server):
        with udp_client(forward) as one, udp_client(forward) as two:
            for number in range(3):
                one.send(b"one %d" % number)
                two.send(b"two %d" % number)
                assert await receive(one) == b"one %d" % number
                assert await receive(two) == b"two %d" % number
        assert len(set(server.seen)) == 2
        assert len(list(pair.gateway_worker.flows())) == 2


async def test_udp_forward_ends_idle_associations(tmp_path: Path) -> None:
    gateway = "[socks]\nidle_udp = 1\n"
    async with udp_forward(tmp_path, gateway=gateway) as (pair, forward, _):
        with udp_client(forward) as client:
            client.send(b"x")
            await receive(client)
            async with asyncio.timeout(60):
                while list(pair.gateway_worker.flows()) or list(pair.endpoint_worker.flows()):
                    await asyncio.sleep(0.05)
                while pair.gateway_worker.clients.associations.clients:
                    await asyncio.sleep(0.05)
            client.send(b"again")
            assert await receive(client) == b"again"


async def test_udp_forward_without_a_link_drops_and_counts(tmp_path: Path) -> None:
    async with udp_forward(tmp_path, linked=False) as (pair, forward, _):
        with udp_client(forward) as client:
            client.send(b"x")
            await until_dropped(pair, "no-link")


async def test_udp_forward_passes_the_endpoints_policy(tmp_path: Path) -> None:
    async with udp_forward(tmp_path, ("10.1.2.3", 53)) as (pair, forward, _):
        with udp_client(forward) as client:
            client.send(b"x")
            async with asyncio.timeout(60):
                while not counted(pair.endpoint_worker, "udp_dropped_total", "policy"):
                    await asyncio.sleep(0.005)


async def test_udp_forward_takes_the_largest_datagram(tmp_path: Path) -> None:
    async with udp_forward(tmp_path) as (_, forward, server):
        with udp_client(forward) as client:
            client.send(bytes(65_507))
            assert await receive(client) == bytes(65_507)
            assert len(server.seen) == 1


async def test_udp_forward_takes_a_burst_of_a_new_client(tmp_path: Path) -> None:
    async with udp_forward(tmp_path) as (pair, forward, server):
        with udp_client(forward) as client:
            for number in range(200):
                client.send(b"line %d" % number)
            async with asyncio.timeout(60):
                while len(server.seen) < 200:
                    await asyncio.sleep(0.005)
        assert counted(pair.gateway_worker, "udp_dropped_total", "opening") == 0
