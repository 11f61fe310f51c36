"""Workers whose program is replaced: real processes, real sockets, and the wire in the test's hand."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from socks_tunnel.config.for_workers import dump
from socks_tunnel.config.loader import load
from socks_tunnel.ipc.descriptors import send_descriptors
from socks_tunnel.ipc.stream import connect
from socks_tunnel.protocol.addresses import HostPort, decode_address, encode_address
from socks_tunnel.protocol.handover import STATE_VERSION, Head, StateWriter
from socks_tunnel.protocol.ipc import (
    Attached,
    ChildHello,
    ChildReady,
    Configure,
    Detach,
    HandedOver,
    HandOver,
    NewFlows,
    PeerRows,
    SessionOpened,
    Settle,
    Settled,
    Shutdown,
)
from support.worker_pair import LINK, Side, attach, write_configs

FEATURES = ("udp", "bind", "resume")
SIZE = 6_000_000


class Host:
    """One worker process, and the supervisor's end of its stream."""

    def __init__(self, role: str, config: Path, listening: list[socket.socket]) -> None:
        self.role = role
        self.config = config
        self.listening = listening
        self.peer = "office" if role == "gateway" else "laptop"
        self.side: Side
        self.process: asyncio.subprocess.Process

    async def start(self, directory: Path) -> None:
        ours, theirs = socket.socketpair()
        fds = [sock.fileno() for sock in self.listening]
        metrics = directory / "metrics"
        metrics.mkdir(exist_ok=True)
        with theirs:
            self.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "socks_tunnel_workers", "--index=0"),
                *(f"--ipc-fd={theirs.fileno()}", f"--listen-fds={','.join(map(str, fds))}"),
                pass_fds=(theirs.fileno(), *fds),
                env={**os.environ, "SOCKS_TUNNEL_METRICS_DIR": str(metrics)},
            )
        self.side = await connect(ours, Side)
        await self.configure()

    async def configure(self) -> None:
        hello = await self.wait(ChildHello)
        assert hello.pid == self.process.pid
        rows = [[sock.fileno(), "socks", "", 0] for sock in self.listening]
        self.side.send_control(0, Configure(1, dump(load(self.config)), rows))
        await self.wait(ChildReady)
        self.side.send_control(LINK, SessionOpened(self.peer))

    async def wait(self, kind: type[Any]) -> Any:
        """Waits for a control message; a loaded machine takes its time to start a process."""
        async with asyncio.timeout(60):
            while True:
                for message in self.side.controls:
                    if isinstance(message, kind):
                        self.side.controls.remove(message)
                        return message
                self.side.changed.clear()
                await self.side.changed.wait()

    async def replace(self) -> int:
        """Replaces the program; returns how many flows were handed over."""
        self.side.send_control(0, Settle(60.0))
        assert (await self.wait(Settled)).waiting == 0
        self.side.send_control(0, NewFlows([[[], []]], [[]]))
        self.side.send_control(LINK, Detach("the program is replaced"))
        self.side.keep_credit = (
            True  # HandOver is the last frame; the next program gets the next one
        )
        self.side.send_control(0, HandOver())
        handed: HandedOver = await self.wait(HandedOver)
        with socket.socket(fileno=os.dup(self.side.descriptor)) as raw:
            send_descriptors(raw, [sock.fileno() for sock in self.listening])
        self.side.keep_credit = False
        await self.configure()
        return handed.flows


async def resume(*hosts: Host) -> None:
    """A link comes up between both."""
    for host in hosts:
        attach(host.side, resume=True, features=FEATURES)
    rows = [(await host.wait(Attached)).rows for host in hosts]
    for host, peer_rows in zip(hosts, reversed(rows), strict=True):
        host.side.cut = False
        host.side.send_control(LINK, PeerRows(peer_rows, True))
    hosts[0].side.send_control(0, NewFlows([[[LINK], []]], [[]]))


@contextlib.asynccontextmanager
async def two_hosts(directory: Path) -> AsyncIterator[tuple[Host, Host]]:
    gateway_config, endpoint_config = write_configs(directory)
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listening:
        gateway = Host("gateway", gateway_config, [listening])
        endpoint = Host("endpoint", endpoint_config, [])
        hosts = gateway, endpoint
        for host in hosts:
            (directory / host.role).mkdir()
        await asyncio.gather(*(host.start(directory / host.role) for host in hosts))
        gateway.side.peer, endpoint.side.peer = endpoint.side, gateway.side
        await resume(*hosts)
        try:
            yield hosts
        finally:
            for host in hosts:
                host.side.send_control(0, Shutdown())
            async with asyncio.timeout(60):
                for host in hosts:
                    await host.process.wait()


async def ask(gateway: Host, command: int, port: int) -> tuple[socket.socket, HostPort]:
    """Returns a client's connection, and the address in its SOCKS reply."""
    loop = asyncio.get_running_loop()
    client = socket.socket()
    client.setblocking(False)
    await loop.sock_connect(client, gateway.listening[0].getsockname())
    asked = bytes((5, 1, 0, 5, command, 0)) + encode_address(HostPort("127.0.0.1", port))
    await loop.sock_sendall(client, asked)
    return client, await reply(client)


async def reply(client: socket.socket, greeting: int = 2) -> HostPort:
    loop = asyncio.get_running_loop()
    answer = b""
    while len(answer) < 10 + greeting:
        answer += await loop.sock_recv(client, 10 + greeting - len(answer))
    assert answer[greeting : greeting + 2] == b"\5\0"
    return decode_address(answer, greeting + 3)[0]


async def send(sock: socket.socket, data: bytes) -> None:
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)


async def digest(sock: socket.socket) -> str:
    loop = asyncio.get_running_loop()
    found = hashlib.sha256()
    while data := await loop.sock_recv(sock, 65_536):
        found.update(data)
    return found.hexdigest()


WHO = [("gateway",), ("endpoint",), ("gateway", "endpoint")]


def chosen(hosts: tuple[Host, Host], who: tuple[str, ...]) -> list[Host]:
    return [host for host in hosts if host.role in who]


async def replace(hosts: tuple[Host, Host], who: tuple[str, ...]) -> list[int]:
    """Replaces programs while the link between both is gone."""
    for host in hosts:
        host.side.cut = True
    for host in hosts:
        if host.role not in who:
            host.side.send_control(0, NewFlows([[[], []]], [[]]))
            host.side.send_control(LINK, Detach("the other side is replaced"))
    flows = await asyncio.gather(*(host.replace() for host in chosen(hosts, who)))
    await resume(*hosts)
    return flows


@pytest.mark.parametrize("who", WHO, ids="+".join)
async def test_the_bytes_of_a_flow_go_on(tmp_path: Path, who: tuple[str, ...]) -> None:
    loop = asyncio.get_running_loop()
    up, down = random.Random(1).randbytes(SIZE), random.Random(2).randbytes(SIZE)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        async with two_hosts(tmp_path) as hosts, asyncio.timeout(120):
            client, _ = await ask(hosts[0], 1, server.getsockname()[1])
            target, _ = await loop.sock_accept(server)
            target.setblocking(False)
            with client, target:
                work = [
                    asyncio.ensure_future(part) for part in (send(client, up), send(target, down))
                ]  # nobody reads: bytes wait in sockets, windows and queues on both hosts
                await asyncio.sleep(0)
                first = await loop.sock_recv(client, 10)
                assert await replace(hosts, who) == [1] * len(who)
                sums = [
                    asyncio.ensure_future(digest(client)),
                    asyncio.ensure_future(digest(target)),
                ]
                await asyncio.gather(*work)
                assert first + down[10:] == down
                whole = hashlib.sha256(down[len(first) :]).hexdigest()
                assert await sums[0] == whole
                assert await sums[1] == hashlib.sha256(up).hexdigest()


@pytest.mark.parametrize("who", WHO, ids="+".join)
async def test_associations_go_on(tmp_path: Path, who: tuple[str, ...]) -> None:
    loop = asyncio.get_running_loop()
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        for sock in (echo, sender):
            sock.bind(("127.0.0.1", 0))
            sock.setblocking(False)
        async with two_hosts(tmp_path) as hosts, asyncio.timeout(120):
            control, relay = await ask(hosts[0], 3, 0)
            packet = b"\0\0\0" + encode_address(HostPort(*echo.getsockname())) + b"ping"

            async def turn() -> tuple[str, int]:
                """Asks until there is an answer: datagrams of the gap are gone."""
                while True:
                    await loop.sock_sendto(sender, packet, (relay.host, relay.port))
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(0.5):
                            _, source = await loop.sock_recvfrom(echo, 100)
                            await loop.sock_sendto(echo, b"pong", source)
                            assert (await loop.sock_recv(sender, 100)).endswith(b"pong")
                            return source  # type: ignore[no-any-return]  # typeshed has Any

            before = await turn()
            for _ in range(2):  # what was handed over is handed over again
                assert await replace(hosts, who) == [1] * len(who)
                assert await turn() == before, "the target sees the same source"
            control.close()


async def test_a_bind_still_awaits_its_caller(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with two_hosts(tmp_path) as hosts, asyncio.timeout(120):
        waiting, listener = await ask(hosts[0], 2, 9)
        assert await replace(hosts, ("endpoint",)) == [1]
        with waiting, socket.socket() as caller:
            caller.setblocking(False)
            await loop.sock_connect(caller, (listener.host, listener.port))
            await reply(waiting, greeting=0)
            await loop.sock_sendall(caller, b"hello")
            assert await loop.sock_recv(waiting, 100) == b"hello"


async def test_a_state_that_cannot_be_read_ends_the_flows_and_not_the_worker(
    tmp_path: Path,
) -> None:
    loop = asyncio.get_running_loop()
    state = os.memfd_create("later", 0)
    with os.fdopen(state, "w+b", closefd=False) as file:
        StateWriter(file, Head(STATE_VERSION + 1, "9.0")).finish()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        config, _ = write_configs(tmp_path)
        listening = socket.create_server(("127.0.0.1", 0))
        host = Host("gateway", config, [listening])
        ours, theirs = socket.socketpair()
        log = tmp_path / "log"
        with theirs, log.open("wb") as stderr:
            (tmp_path / "metrics").mkdir()
            host.process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "socks_tunnel_workers", "--index=0"),
                *(f"--ipc-fd={theirs.fileno()}", f"--take-over={state}"),
                pass_fds=(theirs.fileno(), state),
                env={**os.environ, "SOCKS_TUNNEL_METRICS_DIR": str(tmp_path / "metrics")},
                stderr=stderr,
            )
        os.close(state)
        host.side = await connect(ours, Side)
        with socket.socket(fileno=os.dup(host.side.descriptor)) as raw:
            send_descriptors(raw, [listening.fileno()])
        await host.configure()
        with socket.socket() as client:  # it serves
            client.setblocking(False)
            await loop.sock_connect(client, listening.getsockname())
            await loop.sock_sendall(client, b"\5\1\0")
            async with asyncio.timeout(60):
                assert await loop.sock_recv(client, 2) == b"\5\0"
        host.side.send_control(0, Shutdown())
        assert await host.process.wait() == 0
        listening.close()
    assert "written by 9.0; this program reads 1" in log.read_text()


async def test_a_worker_that_nobody_takes_over_ends(tmp_path: Path) -> None:
    config, _ = write_configs(tmp_path)
    host = Host("gateway", config, [])
    await host.start(tmp_path)
    host.side.send_control(0, HandOver())
    await host.wait(HandedOver)
    host.side.abort()
    async with asyncio.timeout(60):
        assert await host.process.wait() == 1
