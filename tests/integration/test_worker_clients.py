"""Clients of a gateway worker that leave, that log in, and that speak too early, on real sockets."""

from __future__ import annotations

import asyncio
import resource
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from socks_tunnel.config.users import PasswordChecker, hash_password
from socks_tunnel.protocol.addresses import HostPort, encode_address
from socks_tunnel.protocol.ipc import NewFlows, SessionEnded, SessionOpened
from socks_tunnel.protocol.messages import OpenConnection
from socks_tunnel_workers.frontends import socks
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.sockets import KEEPALIVE_INTERVAL, KEEPALIVE_PROBES, PlainSocket
from support.worker_pair import LINK, Pair, attach, counted, link_up, worker_pair

RESET = b"\1\0\0\0\0\0\0\0"


def connect(host: str, port: int) -> bytes:
    return b"\x05\x01\x00\x05\x01\x00" + encode_address(HostPort(host, port))


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65_536):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def until_empty(pair: Pair) -> None:
    async with asyncio.timeout(60):
        while pair.gateway_worker.clients.handshakes or pair.gateway_worker.clients.waiting:
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("how", ["reset", "end of file"])
async def test_clients_that_left_hold_nothing_and_are_not_dialled_for(
    tmp_path: Path, how: str, echo: int
) -> None:
    async with worker_pair(tmp_path, linked=False) as pair:
        pair.gateway.recording = True
        writers = []
        for _ in range(60):
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
            writer.write(connect("127.0.0.1", echo))
            await reader.readexactly(2)
            writers.append(writer)
        for writer in writers:
            if how == "reset":
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.close()
        await until_empty(pair)
        link_up(pair.endpoint, "laptop")
        link_up(pair.gateway, "office")
        async with asyncio.timeout(60):
            while not pair.gateway_worker.clients.routing.some:
                await asyncio.sleep(0.005)
        assert pair.gateway.sent == []


async def test_early_data_in_a_window_of_one_byte(tmp_path: Path, echo: int) -> None:
    early = b"GET / HTTP/1.0\r\n\r\n"
    async with worker_pair(tmp_path, linked=False) as pair:
        streams = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
            writer.write(connect("127.0.0.1", echo) + early)
            writer.write_eof()
            streams.append((reader, writer))
        link_up(pair.endpoint, "laptop")
        async with asyncio.timeout(60):
            while not pair.endpoint_worker.sessions:
                await asyncio.sleep(0.005)
        pair.endpoint_worker.sessions[LINK].receive_window = 1
        link_up(pair.gateway, "office", window=1)
        for reader, writer in streams:
            async with asyncio.timeout(60):
                raw = await reader.read()
            assert raw[:4] == b"\x05\x00\x05\x00"
            assert raw[12:] == early
            writer.close()


async def test_a_session_that_ends_before_its_answer_is_followed_by_the_next(
    tmp_path: Path, echo: int
) -> None:
    async with worker_pair(tmp_path) as pair:
        pair.gateway.recording = True
        pair.gateway.filter = lambda _: False  # the endpoint is gone, and nobody has noticed
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
        writer.write(connect("127.0.0.1", echo) + b"early")
        await pair.gateway.message(OpenConnection)
        pair.gateway.filter = None
        pair.gateway.send_control(LINK, SessionEnded("the endpoint has crashed"))
        link_up(pair.endpoint, "laptop", link=LINK + 1)
        link_up(pair.gateway, "office", link=LINK + 1)
        async with asyncio.timeout(60):
            raw = await reader.readexactly(2 + 10 + 5)
        assert (raw[:4], raw[-5:]) == (b"\x05\x00\x05\x00", b"early")
        writer.close()


async def test_socks4_and_4a(tmp_path: Path, echo: int) -> None:
    async with worker_pair(tmp_path) as pair:
        for address in (b"\x7f\x00\x00\x01joe\x00", b"\x00\x00\x00\x01\x00localhost\x00"):
            reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
            writer.write(b"\x04\x01" + echo.to_bytes(2) + address + b"early")
            reply = await reader.readexactly(8)
            assert reply[:2] == b"\x00\x5a"
            assert await reader.readexactly(5) == b"early"
            writer.close()
        assert counted(pair.gateway_worker, "requests_total", "connect", "succeeded") == 2


# --- logins ---------------------------------------------------------------------------------------


async def log_in(pair: Pair, source: str, name: str, password: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.port, local_addr=(source, 0))
    offer = bytes((len(name),)) + name.encode() + bytes((len(password),)) + password.encode()
    writer.write(b"\x05\x01\x02\x01" + offer)
    try:
        return await reader.readexactly(4)
    finally:
        writer.close()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Checks of guesses take until it is open."""
    opened = threading.Event()
    check = PasswordChecker.check

    def wait(self: PasswordChecker, name: str, password: str) -> bool:
        if password.startswith("guess"):
            assert opened.wait(300)
        return check(self, name, password)

    monkeypatch.setattr(PasswordChecker, "check", wait)
    # On a busy machine, a thousand checks take longer than a client has for its handshake.
    monkeypatch.setattr(socks, "HANDSHAKE_SECONDS", 300.0)
    yield opened
    opened.set()


GUESSES = 1_000
"""Clients of one sender that try passwords at once."""


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """Two ends of each guess are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
async def test_guesses_keep_nobody_waiting_but_their_sender(
    tmp_path: Path, gate: threading.Event
) -> None:
    (tmp_path / "users").write_text(
        f"ana:{hash_password('secret')}\nbob:{hash_password('secret')}\n"
    )
    async with worker_pair(tmp_path, gateway='socks.users_file = "users"') as pair:
        assert (await log_in(pair, "127.0.0.1", "ana", "secret"))[3] == 0

        async def guess(number: int) -> bytes:
            return await log_in(pair, "127.0.0.9", "ana", f"guess {number}")

        guesses = [asyncio.create_task(guess(number)) for number in range(GUESSES)]
        async with asyncio.timeout(300):
            while not pair.gateway_worker.clients.logins.waiting:
                await asyncio.sleep(0.01)
            # No guess has been checked yet when these two have their answers.
            assert (await log_in(pair, "127.0.0.1", "ana", "secret"))[3] == 0, "known"
            assert (await log_in(pair, "127.0.0.2", "bob", "secret"))[3] == 0, "a first login"
            gate.set()
            answers = await asyncio.gather(*guesses)
        assert {answer[3] for answer in answers} == {1}
    assert counted(pair.gateway_worker, "socks_rejected_total", "authentication") == GUESSES


async def test_guesses_whose_clients_left_are_not_checked(
    tmp_path: Path, gate: threading.Event
) -> None:
    (tmp_path / "users").write_text(f"ana:{hash_password('secret')}\n")
    async with worker_pair(tmp_path, gateway='socks.users_file = "users"') as pair:
        guesses = [
            asyncio.create_task(log_in(pair, "127.0.0.9", "ana", f"guess {number}"))
            for number in range(12)
        ]
        logins = pair.gateway_worker.clients.logins
        async with asyncio.timeout(60):
            while logins.waiting < 11:
                await asyncio.sleep(0.001)
            for task in guesses:
                task.cancel()
            await asyncio.gather(*guesses, return_exceptions=True)
            while pair.gateway_worker.clients.handshakes:
                await asyncio.sleep(0.005)
        assert logins.waiting == 0
        gate.set()


# --- names ----------------------------------------------------------------------------------------


async def ask(pair: Pair, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
    writer.write(b"\x05\x01\x00" + request)
    try:
        async with asyncio.timeout(60):
            return (await reader.read())[2:]
    finally:
        writer.close()


async def test_names_are_resolved_at_the_endpoint_as_torsocks_asks_for_it(tmp_path: Path) -> None:
    async with worker_pair(tmp_path, linked=False) as pair:
        features = ("udp", "bind", "resolve")
        link_up(pair.endpoint, "laptop")
        pair.gateway.send_control(LINK, SessionOpened("office"))
        attach(pair.gateway, features=features)
        pair.gateway.send_control(0, NewFlows([[[LINK], []]], [[]]))
        name = b"\x05\xf0\x00\x03\x09localhost\x00\x00"
        assert await ask(pair, name) == b"\x05\x00\x00\x01\x7f\x00\x00\x01\x00\x00"
        denied = b"\x05\xf0\x00\x03\x0bexample.org\x00\x00"
        assert (await ask(pair, denied))[1] in {2, 4}
        address = b"\x05\xf1\x00\x01\x0a\x01\x02\x03\x00\x00"
        assert (await ask(pair, address))[1] == 2
        assert counted(pair.gateway_worker, "requests_total", "resolve", "succeeded") == 1
        assert not list(pair.gateway_worker.flows())


def test_a_plain_socket_makes_no_members_of_enumerations() -> None:
    with PlainSocket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        assert (type(sock.family), type(sock.type)) == (int, int)
        assert (sock.family, sock.type) == (socket.AF_INET6, socket.SOCK_DGRAM)
        assert "family=10" in repr(sock)
        assert not hasattr(sock, "__dict__")


async def test_the_connection_of_a_client_has_the_options_of_a_relay(
    tmp_path: Path, echo: int
) -> None:
    async with worker_pair(tmp_path) as pair:
        reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
        writer.write(connect("127.0.0.1", echo))
        await reader.readexactly(12)
        (flow,) = pair.gateway_worker.flows()
        assert isinstance(flow, TcpRelay)
        sock = flow.sock
        assert sock is not None
        assert not sock.getblocking()
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == KEEPALIVE_INTERVAL
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT) == KEEPALIVE_PROBES
        writer.close()
