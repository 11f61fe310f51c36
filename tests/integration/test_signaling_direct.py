"""The direct carrier over real sockets: answers, refusals, and clients that mean no good.

This file is long because each refusal of the carrier has a test.
"""

import asyncio
import contextlib
import gzip
import logging
import os
import resource
import socket
import stat
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvloop

from integration.link_pair import SESSION, hello, site
from socks_tunnel.ops import http_server
from socks_tunnel.peer import Link
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.signaling import direct
from socks_tunnel.signaling.carrier import Answered, SignalingError, remote_address
from socks_tunnel.signaling.direct import (
    DirectClient,
    DirectServer,
)
from socks_tunnel.signaling.envelope import (
    ENVELOPE_MAX,
    EnvelopeRejected,
    Verifier,
    new_body,
    seal,
)
from socks_tunnel.signaling.identity import PrivateIdentity

LOOPBACK = HostPort("127.0.0.1", 0)


class Desk:
    """Handlers that answer by what the envelope says, and remember what came."""

    def __init__(self) -> None:
        self.offers: list[bytes] = []
        self.byes: list[tuple[str, bytes]] = []
        self.remotes: list[str] = []
        self.gate = asyncio.Event()

    async def offer(self, envelope: bytes) -> Answered | None:
        self.offers.append(envelope)
        self.remotes.append(remote_address.get())
        if envelope == b"wait":
            await self.gate.wait()
        if envelope == b"fail":
            raise LookupError("a bug")
        return None if envelope == b"reject" else Answered(envelope[::-1], "abc123")

    async def bye(self, session_id: str, envelope: bytes) -> bool:
        self.byes.append((session_id, envelope))
        return envelope == b"goodbye"


@contextlib.asynccontextmanager
async def serving(
    listen: HostPort | Path = LOOPBACK, **options: Any
) -> AsyncIterator[tuple[DirectServer, DirectClient, Desk]]:
    desk = Desk()
    server = DirectServer(listen, desk.offer, **({"bye": desk.bye} | options))
    await server.start()
    where = server.address
    url = f"unix:{where}" if isinstance(where, Path) else f"http://{where}/"
    try:
        yield server, DirectClient(url), desk
    finally:
        desk.gate.set()
        await server.stop()


def port_of(server: DirectServer) -> int:
    assert isinstance(server.address, HostPort)
    return server.address.port


def held(server: DirectServer) -> int:
    assert server.http is not None
    return len(server.http.connections)


def patient(server: DirectServer) -> None:
    """Gives clients from now on as much time as a busy machine may need."""
    assert server.http is not None
    server.http.bounds = replace(server.http.bounds, read_timeout=60.0)


async def speak(server: DirectServer, data: bytes) -> bytes:
    """Send raw bytes and give all that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    writer.write(data)
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("where", ["127.0.0.1", "::1", "unix"])
def test_offer_and_bye(
    where: str, factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    async def check() -> None:
        listen = tmp_path / "signal.sock" if where == "unix" else HostPort(where, 0)
        async with serving(listen) as (_, client, desk):
            answer, location = await client.offer(b"an offer", 60)
            assert answer == b"reffo na"
            await client.bye(location, b"goodbye")
            assert desk.offers == [b"an offer"]
            assert desk.byes == [("abc123", b"goodbye")]
            assert desk.remotes == ["local" if where == "unix" else where]

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(check())


async def test_the_longest_envelope_passes_and_no_longer_one() -> None:
    async with serving() as (_, client, desk):
        answer, _ = await client.offer(bytes(ENVELOPE_MAX), 60)
        assert len(answer) == ENVELOPE_MAX
        with pytest.raises(SignalingError, match="413"):
            await client.offer(bytes(ENVELOPE_MAX + 1), 60)
        assert len(desk.offers) == 1


async def test_a_rejection_says_403_and_nothing_else() -> None:
    async with serving() as (server, client, _):
        with pytest.raises(SignalingError, match="refused the offer; its log says why"):
            await client.offer(b"reject", 60)
        with pytest.raises(SignalingError, match="refused the end of the session"):
            await client.bye("/abc123", b"not signed")
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"http://{server.address}/", data=b"reject") as response,
        ):
            assert response.status == 403
            assert await response.read() == b""
            assert "Server" not in response.headers


async def test_other_paths_and_methods_are_refused() -> None:
    async with (
        serving() as (server, _, desk),
        aiohttp.ClientSession() as session,
    ):
        for method, path, status in (
            ("GET", "/", 405),
            ("PUT", "/", 405),
            ("POST", "/elsewhere", 403),
        ):
            url = f"http://{server.address}{path}"
            async with session.request(method, url, data=b"x") as response:
                assert (response.status, await response.read()) == (status, b"")
        assert desk.offers == []


async def test_without_a_bye_handler_every_delete_is_refused() -> None:
    async with serving(bye=None) as (_, client, _):
        with pytest.raises(SignalingError, match="refused"):
            await client.bye("/abc123", b"goodbye")


async def test_a_bug_in_a_handler_is_logged_and_survived(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving() as (_, client, _):
        with pytest.raises(SignalingError, match="failed on the offer"):
            await client.offer(b"fail", 60)
        await client.offer(b"next", 60)
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]


async def test_a_bug_that_comes_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as (server, client, _):
        for _ in range(20):
            with pytest.raises(SignalingError, match="failed on the offer"):
                await client.offer(b"fail", 60)
        assert server.http is not None
        assert server.http.failures == 20
    assert len([record for record in caplog.records if record.exc_info]) == 1


@pytest.mark.parametrize(
    ("fields", "body", "status"),
    [
        (
            b"Content-Encoding: gzip\r\nContent-Length: %d\r\n",
            gzip.compress(bytes(60_000_000)),
            415,
        ),
        (b"Content-Encoding: deflate\r\nContent-Length: %d\r\n", b"x", 415),
        (b"content-encoding: identity, br\r\nContent-Length: %d\r\n", b"x", 415),
        (b"Transfer-Encoding: chunked\r\n", b"1\r\nx\r\n" * 60_000, 411),
        (b"Content-Length: %d\r\n", bytes(ENVELOPE_MAX + 1), 413),
        (b"Content-Length: 99999999999999999\r\n", b"", 413),
    ],
    ids=["gzip", "deflate", "list", "chunked", "long", "claimed"],
)
async def test_bodies_that_cost_work_are_refused_by_their_head(
    fields: bytes, body: bytes, status: int
) -> None:
    if b"%d" in fields:
        fields %= len(body)
    async with serving() as (server, client, desk):
        answer = await speak(server, b"POST / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n" + body)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert desk.offers == []
        await client.offer(b"others are served", 60)


async def test_a_client_that_waits_for_leave_to_send_gets_it() -> None:
    async with serving() as (server, _, desk):
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n"
        writer.write(head)
        assert b"100" in await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        writer.write(b"offer")
        assert b"201" in await asyncio.wait_for(reader.read(), 60)
        assert desk.offers == [b"offer"]
        writer.close()


async def test_work_for_a_client_that_left_is_ended() -> None:
    async with serving(handle_timeout=3600) as (server, client, desk):
        leaving = asyncio.create_task(client.offer(b"wait", 60))
        while not desk.offers:
            await asyncio.sleep(0.01)
        leaving.cancel()
        while held(server):
            await asyncio.sleep(0.01)
        assert server.http is not None
        while server.http._active:
            await asyncio.sleep(0.01)


async def test_one_connection_has_one_request() -> None:
    async with serving() as (server, _, desk):
        one = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx"
        answer = await speak(server, one * 1000)
        assert answer.count(b"HTTP/1.1") <= 1
        assert len(desk.offers) == 1


async def test_work_that_takes_too_long_is_given_up() -> None:
    async with serving(handle_timeout=0.1) as (_, client, _):
        with pytest.raises(SignalingError, match="too busy"):
            await client.offer(b"wait", 60)


async def test_only_so_many_requests_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(direct, "REQUESTS_MAX", 2)
    async with serving() as (_, client, desk):
        waiting = [asyncio.create_task(client.offer(b"wait", 60)) for _ in range(2)]
        while len(desk.offers) < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(SignalingError, match="too busy"):
            await client.offer(b"one more", 60)
        desk.gate.set()
        assert [answer for answer, _ in await asyncio.gather(*waiting)] == [b"tiaw"] * 2
        await client.offer(b"one more", 60)


async def test_requests_to_join_and_offers_do_not_keep_each_other_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct, "REQUESTS_MAX", 2)
    monkeypatch.setattr(direct, "JOINS_MAX", 2)
    at_work = 0
    gate = asyncio.Event()

    async def join(request: bytes) -> bytes:
        nonlocal at_work
        at_work += 1
        await gate.wait()
        return request

    refused: list[str] = []
    async with serving(join=join, refused=refused.append) as (_, client, desk):
        joining = [asyncio.create_task(client.join(b"host", 60)) for _ in range(2)]
        while at_work < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(SignalingError, match="too busy"):
            await client.join(b"one more", 60)
        offering = [asyncio.create_task(client.offer(b"wait", 60)) for _ in range(2)]
        while len(desk.offers) < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(SignalingError, match="too busy"):
            await client.offer(b"one more", 60)
        assert refused == ["busy", "busy"]
        gate.set()
        assert await asyncio.gather(*joining) == [b"host"] * 2
        assert await client.join(b"again", 60) == b"again"
        desk.gate.set()
        await asyncio.gather(*offering)


@pytest.mark.parametrize(
    "start",
    [
        b"",
        b"P",
        b"POST / HTTP/1.1\r\nHost: x\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n123",
    ],
)
async def test_a_request_that_never_ends_is_cut(start: bytes) -> None:
    async with serving(read_timeout=0.3) as (server, client, desk):
        began = time.monotonic()
        assert await asyncio.wait_for(speak(server, start), 60) == b""
        assert time.monotonic() - began > 0.2
        assert desk.offers == []
        patient(server)
        await client.offer(b"others are served", 60)


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    """All descriptors that this process may have are taken during the block."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.open("/dev/null", os.O_RDONLY)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(taken[0]))
        yield
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_accepting_goes_on_when_descriptors_are_there_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(http_server, "ACCEPT_PAUSE", 0.05)
    async with serving() as (server, client, _):
        with socket.create_connection(("127.0.0.1", port_of(server))):
            with no_descriptors():
                async with asyncio.timeout(60):
                    while len(caplog.records) < 2:
                        await asyncio.sleep(0.01)
            assert held(server) == 0
            await client.offer(b"an offer", 60)
    said = "cannot accept a signalling connection: [Errno 24] Too many open files"
    assert {record.getMessage() for record in caplog.records} == {said}


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
@pytest.mark.parametrize("turns", range(6))
def test_a_connection_that_comes_while_it_stops_is_closed(
    turns: int, factory: Callable[[], asyncio.AbstractEventLoop], tmp_path: Path
) -> None:
    """Whatever the event loop has done with it so far: nothing, accepted it, begun to open it."""

    async def check() -> None:
        server = DirectServer(tmp_path / "signal.sock", Desk().offer)
        await server.start()
        await asyncio.sleep(0)  # it waits for connections
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(tmp_path / "signal.sock"))
            client.setblocking(False)
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.stop()
            async with asyncio.timeout(60):
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.get_running_loop().sock_recv(client, 1) == b""

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(check())


async def test_one_address_holds_only_so_many_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(direct, "CONNECTIONS_PER_ADDRESS_MAX", 3)
    async with serving() as (server, client, _):
        idle = [await asyncio.open_connection("127.0.0.1", port_of(server)) for _ in range(3)]
        while held(server) < 3:
            await asyncio.sleep(0.01)
        assert await speak(server, b"POST / HTTP/1.1\r\n\r\n") == b""
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()
        while held(server):
            await asyncio.sleep(0.01)
        await client.offer(b"there is room again", 60)
        assert server.http is not None
        assert set(server.http.per_address.values()) <= {1}


async def test_all_addresses_hold_only_so_many_connections(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(direct, "CONNECTIONS_MAX", 2)
    path = tmp_path / "signal.sock"
    async with serving(path) as (server, client, _):
        idle = [await asyncio.open_unix_connection(str(path)) for _ in range(2)]
        while held(server) < 2:
            await asyncio.sleep(0.01)
        with pytest.raises(SignalingError):
            await client.offer(b"no room", 60)
        for _, writer in idle:
            writer.close()
            await writer.wait_closed()


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x05\x01\x00\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),
        b"POST / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\n" + b"X: " + b"y" * 100_000,
    ],
)
async def test_what_is_no_http_makes_no_noise(
    garbage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(read_timeout=1.0) as (server, client, desk):
        await asyncio.wait_for(speak(server, garbage), 60)
        assert desk.offers == []
        patient(server)
        await client.offer(b"still there", 60)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


# --- the client -------------------------------------------------------------------------------


async def test_nobody_there_is_a_sentence(tmp_path: Path) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/"
        with pytest.raises(SignalingError, match=f"{url} cannot be reached: Connection refused"):
            await DirectClient(url).offer(b"x", 60)
    with pytest.raises(SignalingError, match="cannot be reached: No such file"):
        await DirectClient(f"unix:{tmp_path}/none.sock").offer(b"x", 60)


async def test_a_silent_server_is_given_up_in_time() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/"
        began = time.monotonic()
        with pytest.raises(SignalingError, match=r"did not answer within 0\.2 s"):
            await DirectClient(url).offer(b"x", 0.2)
        assert time.monotonic() - began > 0.15


async def answered_with(response: bytes) -> str:
    """Returns what the client says of a server that sends `response` whatever it is asked."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"offer")
        writer.write(response)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(SignalingError) as caught:
            await DirectClient(f"http://127.0.0.1:{port}/").offer(b"offer", 60)
    return str(caught.value)


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", "a captive portal"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\n\r\n", "status 302"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "status 404"),
        (b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nhi", "gave no answer"),
        (b"HTTP/1.1 201 Created\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n", "gave no answer"),
        (
            b"HTTP/1.1 201 Created\r\nLocation: /x\r\nContent-Length: 70000\r\n\r\n" + bytes(70000),
            "over 65536 bytes",
        ),
        (b"HTTP/1.1 201 Created\r\nLocation: /x\r\nContent-Length: 9\r\n\r\nhi", "failed"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "failed"),
        (b"", "failed"),
    ],
)
async def test_answers_that_cannot_be_used_are_a_sentence(response: bytes, sentence: str) -> None:
    assert sentence in await answered_with(response)


async def test_a_bye_goes_nowhere_else() -> None:
    async with serving() as (_, client, desk):
        for location in ("http://192.0.2.1/x", "//192.0.2.1/x", "http://["):
            with pytest.raises(SignalingError, match="location"):
                await client.bye(location, b"goodbye")
        assert desk.byes == []


# --- the Unix socket --------------------------------------------------------------------------


async def test_the_unix_socket_is_for_user_and_group_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "signal.sock"
    async with serving(path):
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
    assert not path.exists()


async def test_a_socket_left_behind_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "signal.sock"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(path))
    async with serving(path) as (_, client, _):
        await client.offer(b"x", 60)
        second = DirectServer(path, Desk().offer)
        with pytest.raises(OSError, match="another process listens there"):
            await second.start()
        await second.stop()
        await client.offer(b"x", 60)
    path.write_text("no socket")
    with pytest.raises(OSError, match="in use"):
        await DirectServer(path, Desk().offer).start()
    assert path.read_text() == "no socket"


# --- with links and identities ----------------------------------------------------------------


async def test_two_identities_make_a_link_over_it() -> None:
    """What the supervisors do, in short: signed offer in, signed answer out, link up."""
    laptop, office = PrivateIdentity.generate(), PrivateIdentity.generate()
    async with site() as here:
        gateway, at_gateway = here.gateway()
        endpoints: list[Link] = []
        verifier = Verifier(office.public, {laptop.public: "laptop"})

        async def answer(envelope: bytes) -> Answered | None:
            try:
                offer, name = verifier.open(envelope, time.time(), kinds={"offer"})
            except EnvelopeRejected:
                return None
            endpoint, _ = here.endpoint(name=name)
            endpoints.append(endpoint)
            sdp = await endpoint.accept_offer(offer.sdp)
            body = new_body(
                "answer",
                office,
                offer.sender,
                session=offer.session,
                now=time.time(),
                sdp=sdp,
                in_reply_to=offer.nonce,
            )
            return Answered(seal(office, body), offer.session.hex())

        async def bye(session_id: str, envelope: bytes) -> bool:
            body, _ = verifier.open(envelope, time.time(), kinds={"bye"})
            assert body.session.hex() == session_id
            await endpoints[0].close("the gateway said goodbye")
            return True

        server = DirectServer(LOOPBACK, answer, bye=bye)
        await server.start()
        try:
            client = DirectClient(f"http://{server.address}/")
            offer = new_body(
                "offer",
                laptop,
                office.public,
                session=SESSION,
                now=time.time(),
                sdp=await gateway.create_offer(),
            )
            sealed = seal(laptop, offer)
            envelope, location = await client.offer(sealed, 60)
            with pytest.raises(SignalingError, match="refused"):  # it came before
                await client.offer(sealed, 60)
            answered, name = Verifier(laptop.public, {office.public: "office"}).open(
                envelope, time.time(), kinds={"answer"}, in_reply_to=offer.nonce
            )
            assert name == "office"
            await gateway.accept_answer(answered.sdp)
            await at_gateway.up()
            assert gateway.protocol.remote_hello == hello()
            goodbye = new_body("bye", laptop, office.public, session=SESSION, now=time.time())
            await client.bye(location, seal(laptop, goodbye))
            assert await at_gateway.down() == "the peer closed the connection"
        finally:
            await server.stop()
        assert len(endpoints) == 1
