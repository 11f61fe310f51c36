"""The direct carrier over HTTPS: whom a client trusts, a renewed certificate, and hostile handshakes."""

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import uvloop

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.signaling import direct
from socks_tunnel.signaling.carrier import Answered, SignalingError
from socks_tunnel.signaling.direct import DirectClient, DirectServer
from socks_tunnel.signaling.tls import client_context, read_server_certificate
from support.certificates import DAY, Authority

ADDRESS = "127.0.0.1"

CLIENT_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(100)
"""The beginning of one: the record announces more."""


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Run a coroutine on each kind of event loop, whose handler must have nothing to say."""

    def run(coroutine: Any) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            complaints: list[dict[str, Any]] = []
            runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))
            runner.run(coroutine)
            gc.collect()  # futures whose exception nobody has fetched
            assert complaints == []

    return run


class Place:
    """A server with certificates from an authority of its own, and a client that trusts that."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = Authority("Test Root")
        self.ca = directory / "ca.pem"
        self.ca.write_text(self.authority.certificate)
        self.gate = asyncio.Event()

    def context(self, text: str) -> ssl.SSLContext:
        path = self.directory / "server.pem"
        path.touch(0o600)
        path.write_text(text)
        return read_server_certificate(path, None).context

    @contextlib.asynccontextmanager
    async def serving(self, text: str | None = None, **options: Any) -> AsyncIterator[DirectServer]:
        tls = self.context(text or self.authority.issue(ADDRESS).both)
        server = DirectServer(HostPort(ADDRESS, 0), self._offer, tls=tls, **options)
        await server.start()
        try:
            yield server
        finally:
            self.gate.set()
            http = server.http
            assert http is not None
            await server.stop()
            assert http.connections == set()
            assert http.per_address == {}

    async def _offer(self, envelope: bytes) -> Answered | None:
        if envelope == b"wait":
            await self.gate.wait()
        return Answered(envelope[::-1], "abc123")

    def client(self, server: DirectServer, scheme: str = "https") -> DirectClient:
        return DirectClient(f"{scheme}://{server.address}/", ca=self.ca)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def open_at(server: DirectServer) -> int:
    assert server.http is not None
    return len(server.http.connections)


def opening_at(server: DirectServer) -> int:
    assert server.http is not None
    return len(server.http._opening)


def port_of(server: DirectServer) -> int:
    assert isinstance(server.address, HostPort)
    return server.address.port


async def until(probe: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not probe():
            await asyncio.sleep(0.01)


async def refusal(client: DirectClient) -> str:
    with pytest.raises(SignalingError) as caught:
        await client.offer(b"an offer", 60)
    return str(caught.value)


# --- trust ------------------------------------------------------------------------------------


def test_offer_and_answer(place: Place, run: Callable[[Any], None]) -> None:
    async def check() -> None:
        async with place.serving() as server:
            client = place.client(server)
            assert await client.offer(b"an offer", 60) == (b"reffo na", "/abc123")
            assert len((await client.offer(bytes(65_536), 60))[0]) == 65_536
            await until(lambda: not open_at(server))

    run(check())


async def test_an_issuer_below_the_root_comes_with_the_certificate(place: Place) -> None:
    below = Authority("Test Issuer", place.authority)
    issued = below.issue(ADDRESS)
    async with place.serving(issued.certificate + below.certificate + issued.key) as server:
        await place.client(server).offer(b"an offer", 60)
        server.tls = place.context(issued.both)
        assert "put the certificates between them into the endpoint's tls_certificate" in (
            await refusal(place.client(server))
        )
        place.ca.write_text(below.certificate)  # read for each request; it need be no root
        await place.client(server).offer(b"an offer", 60)


@pytest.mark.parametrize("name", ["Test Root", "Another Root"])
async def test_another_authority(place: Place, name: str) -> None:
    async with place.serving() as server:
        place.ca.write_text(Authority("Test Root").certificate)
        said = await refusal(place.client(server))
        assert said.startswith(f"the certificate of https://{server.address}/ does not verify: it ")
        assert "tls_ca" in said


async def test_the_systems_authorities(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    async with place.serving() as server:
        client = DirectClient(f"https://{server.address}/")
        assert "name that as tls_ca" in await refusal(client)
        monkeypatch.setenv("SSL_CERT_FILE", str(place.ca))
        await client.offer(b"an offer", 60)


@pytest.mark.parametrize(
    ("names", "valid", "advice"),
    [
        ([ADDRESS], (-2 * DAY, -DAY), "has expired; renew it at the endpoint"),
        ([ADDRESS], (DAY, 2 * DAY), "is not valid yet; is this host's clock right?"),
        (["office.example.com"], (-DAY, DAY), "is for another address"),
    ],
)
async def test_a_certificate_that_does_not_hold(
    place: Place, names: list[str], valid: Any, advice: str
) -> None:
    async with place.serving(place.authority.issue(*names, valid=valid).both) as server:
        assert f"does not verify: it {advice}" in await refusal(place.client(server))


async def test_another_name(place: Place) -> None:
    async with place.serving(place.authority.issue("office.example.com").both) as server:
        client = DirectClient(f"https://localhost:{port_of(server)}/", ca=place.ca)
        assert "is for another name; the url must have one of those" in await refusal(client)


async def test_one_that_signs_itself(place: Place) -> None:
    own = Authority("itself")
    issued = own.issue(ADDRESS)
    async with place.serving(issued.both) as server:
        place.ca.write_text(issued.certificate)  # pinned: the certificate itself is trusted
        await place.client(server).offer(b"an offer", 60)


async def test_authorities_that_are_gone(place: Place) -> None:
    async with place.serving() as server:
        client = place.client(server)
        place.ca.unlink()
        assert f"tls_ca {place.ca} cannot be used" in await refusal(client)


# --- what is no HTTPS -------------------------------------------------------------------------


async def test_http_and_https_mistaken_for_each_other(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with place.serving() as server:
        said = await refusal(place.client(server, "http"))
        assert "if it has a tls_certificate, the url must begin with https://" in said
        assert f"no TLS with {ADDRESS}: http request" in caplog.text
        server.tls = None
        said = await refusal(place.client(server))
        assert "if it listens for plain HTTP, the url must begin with http://" in said
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x05\x01\x00",
        b"\x16\x03\x01\x00\x05hello",
        b"\x16\x03\x01\xff\xff" + bytes(70_000),
        b"\x80\x2e\x01\x00\x02" + bytes(100),
        b"",
    ],
    ids=["http", "socks", "no hello", "too long", "ssl2", "nothing"],
)
@pytest.mark.parametrize("end", ["close", "reset", "wait"])
def test_what_is_no_tls_makes_no_noise(
    place: Place,
    run: Callable[[Any], None],
    garbage: bytes,
    end: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check() -> None:
        async with place.serving(read_timeout=0.5) as server:
            sock = socket.create_connection((ADDRESS, port_of(server)))
            with sock:
                sock.setblocking(False)
                loop = asyncio.get_running_loop()
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(sock, garbage)
                    while end == "wait" and await loop.sock_recv(sock, 65_536):
                        pass  # an alert
                if end == "reset":
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            assert server.http is not None  # the short time is the strangers', not a busy machine's
            server.http.bounds = replace(server.http.bounds, read_timeout=60.0)
            await place.client(server).offer(b"still there", 60)
            await until(lambda: not open_at(server))

    run(check())
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_a_handshake_that_never_ends_is_cut(place: Place, run: Callable[[Any], None]) -> None:
    async def check() -> None:
        async with place.serving(read_timeout=0.4) as server:
            for hello in (b"", b"\x16", CLIENT_HELLO):
                began = time.monotonic()
                reader, writer = await asyncio.open_connection(ADDRESS, port_of(server))
                writer.write(hello)
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), 60) == b""
                assert time.monotonic() - began > 0.3
                writer.close()
            await until(lambda: not open_at(server))

    run(check())


def test_the_time_for_a_request_counts_from_the_connection(
    place: Place, run: Callable[[Any], None]
) -> None:
    """Two halves, the handshake and the request, cannot each take the whole time."""

    async def check() -> None:
        async with place.serving(read_timeout=10.0) as server:
            began = time.monotonic()
            raw = socket.create_connection((ADDRESS, port_of(server)))
            await asyncio.sleep(6.0)  # the point: slow, and in time, also on a busy machine
            tls = await asyncio.to_thread(
                client_context(place.ca).wrap_socket, raw, server_hostname=ADDRESS
            )
            secured = time.monotonic()
            with tls, contextlib.suppress(ConnectionError, ssl.SSLError):
                assert await asyncio.to_thread(tls.recv, 1) == b""
            ended = time.monotonic()
            assert ended - began > 9.9
            # Not as many again from the handshake on: it is 4 s, and a busy machine may be late.
            assert ended - secured < 10.0
            await until(lambda: not open_at(server))

    run(check())


def test_handshakes_count_as_connections(
    place: Place, run: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct, "CONNECTIONS_PER_ADDRESS_MAX", 3)

    async def check() -> None:
        async with place.serving() as server:
            slow = [await asyncio.open_connection(ADDRESS, port_of(server)) for _ in range(3)]
            for _, writer in slow:
                writer.write(CLIENT_HELLO)
            await until(lambda: open_at(server) == 3)
            await refusal(place.client(server))
            slow.pop()[1].close()
            await until(lambda: open_at(server) == 2)
            await place.client(server).offer(b"there is room again", 60)
            for _, writer in slow:
                writer.close()

    run(check())


def test_stopping_ends_handshakes(place: Place, run: Callable[[Any], None]) -> None:
    async def check() -> None:
        async with place.serving() as server:
            reader, writer = await asyncio.open_connection(ADDRESS, port_of(server))
            writer.write(CLIENT_HELLO)
            await until(lambda: opening_at(server))
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 60) == b""
        writer.close()

    run(check())


# --- the certificate changes ------------------------------------------------------------------


def test_a_renewed_certificate_is_for_new_connections(
    place: Place, run: Callable[[Any], None]
) -> None:
    def served(server: DirectServer) -> str:
        return ssl.get_server_certificate((ADDRESS, port_of(server)))

    async def check() -> None:
        old, new = place.authority.issue(ADDRESS), place.authority.issue(ADDRESS)
        async with place.serving(old.both) as server:
            assert await asyncio.to_thread(served, server) == old.certificate
            waiting = asyncio.create_task(place.client(server).offer(b"wait", 60))
            await until(lambda: server.http and server.http._active)
            server.tls = place.context(new.both)
            assert await asyncio.to_thread(served, server) == new.certificate
            await place.client(server).offer(b"an offer", 60)
            assert not waiting.done()
            place.gate.set()
            assert (await waiting)[0] == b"tiaw"

    run(check())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_no_tickets_are_given_out(place: Place, version: ssl.TLSVersion) -> None:
    async with place.serving() as server:

        def connect(session: ssl.SSLSession | None) -> ssl.SSLSocket:
            context = client_context(place.ca)
            context.minimum_version = context.maximum_version = version
            raw = socket.create_connection((ADDRESS, port_of(server)))
            return context.wrap_socket(raw, server_hostname=ADDRESS, session=session)

        with await asyncio.to_thread(connect, None) as sock:
            assert sock.version() == version.name.replace("_", ".")
            session = sock.session
            assert session is None or not session.has_ticket


async def test_old_versions_are_refused(place: Place) -> None:
    async with place.serving() as server:
        context = client_context(place.ca)
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version = ssl.TLSVersion.TLSv1
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        context.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError), socket.create_connection((ADDRESS, port_of(server))) as s:
            await asyncio.to_thread(context.wrap_socket, s, server_hostname=ADDRESS)
