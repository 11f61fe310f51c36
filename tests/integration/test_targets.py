"""What an endpoint's worker does to the sockets of its targets, and what it does when it has none."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import resource
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from socks_tunnel.protocol.messages import UdpAssociate
from socks_tunnel_workers.relay.session import Flow
from socks_tunnel_workers.targets import admission
from socks_tunnel_workers.targets.tcp import TargetRelay
from socks_tunnel_workers.targets.udp import EndpointAssociation
from support.worker_pair import LINK, Pair, worker_pair


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with worker_pair(tmp_path) as running:
        yield running


async def request(
    pair: Pair, command: int, port: int
) -> tuple[int, int, asyncio.StreamReader, asyncio.StreamWriter]:
    """Makes a request for 127.0.0.1; returns the reply code, the bound port, and the streams."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
    writer.write(b"\x05\x01\x00" + bytes((5, command, 0, 1, 127, 0, 0, 1)))
    writer.write(port.to_bytes(2, "big"))
    async with asyncio.timeout(60):
        reply = await reader.readexactly(12)
    return reply[3], int.from_bytes(reply[10:], "big"), reader, writer


async def send_urgent(sock: socket.socket) -> None:
    """Sends abc, X as urgent data, def; each in a segment of its own."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, b"abc")
    sock.send(b"X", socket.MSG_OOB)
    await loop.sock_sendall(sock, b"def")


@contextlib.asynccontextmanager
async def ends(pair: Pair, kind: str) -> AsyncIterator[tuple[socket.socket, socket.socket]]:
    """The sockets of a client and of its target, by CONNECT or by BIND."""
    loop = asyncio.get_running_loop()
    client = socket.create_connection(("127.0.0.1", pair.port))
    client.setblocking(False)
    with client, socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        head = b"\x05\x01\x00" + bytes((5, 1 if kind == "connect" else 2, 0, 1, 127, 0, 0, 1))
        await loop.sock_sendall(client, head + server.getsockname()[1].to_bytes(2, "big"))
        reply = b""
        while len(reply) < 12:
            reply += await loop.sock_recv(client, 12 - len(reply))
        if kind == "connect":
            target, _ = await loop.sock_accept(server)
        else:
            target = socket.create_connection(("127.0.0.1", int.from_bytes(reply[10:], "big")))
            target.setblocking(False)
            assert len(await loop.sock_recv(client, 10)) == 10
        with target:
            yield client, target


@pytest.mark.parametrize("kind", ["connect", "bind"])
async def test_the_urgent_byte_stays_in_the_stream(pair: Pair, kind: str) -> None:
    loop = asyncio.get_running_loop()
    async with ends(pair, kind) as (client, target):
        for one, other in ((client, target), (target, client)):
            await send_urgent(one)
            received = b""
            async with asyncio.timeout(60):
                while len(received) < 7:
                    received += await loop.sock_recv(other, 100)
            assert received == b"abcXdef"


@pytest.mark.parametrize("kind", ["connect", "bind"])
@pytest.mark.parametrize(("keepalive", "user_timeout"), [(60, 120), (7, 9), (0, 0)])
async def test_targets_that_vanish_are_noticed(
    tmp_path: Path, kind: str, keepalive: int, user_timeout: int
) -> None:
    settings = f"[targets]\nkeepalive = {keepalive}\nuser_timeout = {user_timeout}\n"
    async with worker_pair(tmp_path, endpoint=settings) as pair, ends(pair, kind):
        (flow,) = pair.endpoint_worker.flows()
        assert isinstance(flow, TargetRelay)
        async with asyncio.timeout(60):
            while flow.sock is None:
                await asyncio.sleep(0.005)
        sock = flow.sock
        if kind == "connect":
            assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        flow.sweep(asyncio.get_running_loop().time())  # a connection that is over before needs none
        assert bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)) is bool(keepalive)
        if keepalive:
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == keepalive
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == user_timeout * 1000


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """For a while this process can open nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_without_descriptors_a_dial_is_a_general_failure_and_one_warning(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    streams = [await asyncio.open_connection("127.0.0.1", pair.port) for _ in range(3)]
    for reader, writer in streams:
        writer.write(b"\x05\x01\x00")
        await reader.readexactly(2)
    with no_descriptors():
        for reader, writer in streams:
            writer.write(b"\x05\x01\x00\x01\x7f\x00\x00\x01\x00\x50")
            async with asyncio.timeout(60):
                assert (await reader.readexactly(10))[1] == 1
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert [r.getMessage() for r in warnings] == [
        "cannot connect to 127.0.0.1:80: [Errno 24] Too many open files"
    ]
    for _, writer in streams:
        writer.close()


async def test_an_association_opens_nothing_before_it_is_admitted(pair: Pair) -> None:
    session = pair.endpoint_worker.sessions[LINK]
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        session.receive([memoryview(UdpAssociate(77).encode())])
    flows = list(pair.endpoint_worker.flows())
    assert len(flows) <= 1
    assert len(list(Path("/proc/self/fd").iterdir())) - before <= len(flows)


async def test_an_association_without_descriptors_is_refused(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
    writer.write(b"\x05\x01\x00")
    await reader.readexactly(2)
    session = pair.endpoint_worker.sessions[LINK]
    with no_descriptors():
        session.receive([memoryview(UdpAssociate(77).encode())])
    assert not list(pair.endpoint_worker.flows())
    assert "Too many open files" in caplog.text
    writer.close()


async def test_a_flow_that_cannot_be_checked_ends_and_costs_no_other(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = pair.endpoint_worker.sessions[LINK]
    targets = pair.endpoint_worker.targets
    flows = [EndpointAssociation(targets.services, session, conn_id) for conn_id in (1, 2, 3)]
    for flow in flows:
        session.admit(flow)
    checked: list[int] = []

    def recheck(self: EndpointAssociation) -> Iterator[None]:
        if self.conn_id == 2:
            raise ZeroDivisionError
        checked.append(self.conn_id)
        yield

    monkeypatch.setattr(EndpointAssociation, "recheck", recheck)
    for _ in range(2):
        targets.reload()
        while targets._recheck is not None:
            await asyncio.sleep(0)
    assert checked == [1, 3, 1, 3]
    assert [flow.ended for flow in flows] == [False, True, False]


async def test_a_reload_lets_others_have_their_turns(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "RECHECK_SECONDS", 0)
    session = pair.endpoint_worker.sessions[LINK]
    targets = pair.endpoint_worker.targets
    flows: list[Flow] = [
        EndpointAssociation(targets.services, session, conn_id) for conn_id in range(1, 501)
    ]
    checked: list[int] = []

    def recheck(number: int) -> Iterator[None]:
        checked.append(number)
        yield

    for flow in flows:
        monkeypatch.setattr(type(flow), "recheck", lambda self: recheck(self.conn_id))
    targets._flows = lambda: flows
    turns = itertools.count()
    targets.reload()
    while len(checked) < 500:
        next(turns)
        await asyncio.sleep(0)
    assert next(turns) > 400, "one flow a turn"
    # A second reload in the middle of the first begins anew, and is the only one that goes on.
    checked.clear()
    targets.reload()
    for _ in range(10):
        await asyncio.sleep(0)
    begun = len(checked)
    assert 0 < begun < 500
    targets.reload()
    while targets._recheck is not None:
        await asyncio.sleep(0)
    assert checked[begun:] == list(range(1, 501))
