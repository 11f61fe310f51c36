"""The direct carrier through an HTTP proxy, by CONNECT and in the absolute form."""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.signaling.carrier import Answered, SignalingError
from socks_tunnel.signaling.direct import DirectClient, DirectServer
from socks_tunnel.signaling.tls import read_server_certificate
from support.certificates import Authority

NAME = "office.test"
"""A name that only the proxy knows: what reaches the server came through it."""


class ForwardProxy:
    """An HTTP proxy that sends everything to one server, whatever host is asked for."""

    def __init__(self, target: HostPort) -> None:
        self.target = target
        self.heads: list[bytes] = []
        self.answer = b""
        self.serving: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            await self._serve(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
            self.serving.discard(task)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        if self.answer:
            writer.write(self.answer)
            return
        far_reader, far_writer = await asyncio.open_connection(*self.target)
        if head.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        else:
            method, target, rest = head.split(b" ", 2)
            path = b"/" + target.split(b"/", 3)[3]
            far_writer.write(b" ".join((method, path, rest)))
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        far_writer.close()
        with contextlib.suppress(ConnectionError):
            await far_writer.wait_closed()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while data := await source.read(65_536):
        sink.write(data)
        await sink.drain()
    sink.close()


async def _offer(envelope: bytes) -> Answered:
    return Answered(envelope[::-1], "abc123")


async def _bye(session: str, envelope: bytes) -> bool:
    return (session, envelope) == ("abc123", b"goodbye")


class Way:
    def __init__(self, directory: Path) -> None:
        self.authority = Authority("Test Root")
        self.ca = directory / "ca.pem"
        self.ca.write_text(self.authority.certificate)
        self.pem = directory / "server.pem"
        self.pem.touch(0o600)
        self.pem.write_text(self.authority.issue(NAME).both)

    @contextlib.asynccontextmanager
    async def open(self, *, https: bool) -> AsyncIterator[tuple[ForwardProxy, str]]:
        tls = read_server_certificate(self.pem, None).context if https else None
        server = DirectServer(HostPort("127.0.0.1", 0), _offer, bye=_bye, tls=tls)
        await server.start()
        assert isinstance(server.address, HostPort)
        proxy = ForwardProxy(server.address)
        listening = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
        async with listening:
            yield proxy, f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        await server.stop()
        if proxy.serving:  # a socket whose connection ends after the test is a lost one
            await asyncio.wait(proxy.serving)


@pytest.fixture
def way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Way:
    for name in ("http_proxy", "https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return Way(tmp_path)


async def test_https_goes_by_connect(way: Way) -> None:
    async with way.open(https=True) as (proxy, where):
        client = DirectClient(f"https://{NAME}/", ca=way.ca, proxy=f"http://us%20er:pass@{where}")
        assert await client.offer(b"an offer", 20) == (b"reffo na", "/abc123")
        await client.bye("/abc123", b"goodbye")
        credentials = base64.b64encode(b"us er:pass")
        for head in proxy.heads:
            assert head.startswith(b"CONNECT office.test:443 HTTP/1.1\r\n")
            assert b"proxy-authorization: basic " + credentials.lower() in head.lower()
            assert b"an offer" not in head


async def test_http_goes_in_the_absolute_form(way: Way) -> None:
    async with way.open(https=False) as (proxy, where):
        client = DirectClient(f"http://{NAME}:8765/", proxy=f"http://u:p@{where}")
        assert await client.offer(b"an offer", 20) == (b"reffo na", "/abc123")
        assert proxy.heads[0].startswith(b"POST http://office.test:8765/ HTTP/1.1\r\n")
        assert b"proxy-authorization" in proxy.heads[0].lower()


async def test_the_environment_names_it(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    async with way.open(https=True) as (proxy, where):
        monkeypatch.setenv("HTTPS_PROXY", f"http://{where}")
        client = DirectClient(f"https://{NAME}/", ca=way.ca)
        await client.offer(b"an offer", 20)
        assert len(proxy.heads) == 1
        monkeypatch.setenv("NO_PROXY", "test")
        with pytest.raises(SignalingError, match="cannot be reached: "):
            await client.offer(b"an offer", 20)
        assert len(proxy.heads) == 1


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n",
            "407; it wants",
        ),
        (b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", "answered with HTTP status 403"),
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "gave no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 100_000, "gave no HTTP answer"),
    ],
)
async def test_a_proxy_that_refuses_is_named(way: Way, answer: bytes, sentence: str) -> None:
    async with way.open(https=True) as (proxy, where):
        proxy.answer = answer
        client = DirectClient(f"https://{NAME}/", ca=way.ca, proxy=f"http://user:secret@{where}")
        with pytest.raises(SignalingError, match=f"the proxy {where}.*{sentence}") as caught:
            await client.offer(b"an offer", 20)
        assert "secret" not in str(caught.value)


async def test_nobody_at_the_proxy(way: Way) -> None:
    async with way.open(https=True) as (_, where):
        pass
    client = DirectClient(f"https://{NAME}/", ca=way.ca, proxy=f"http://{where}")
    with pytest.raises(SignalingError, match=f"through the proxy {where}: Connection refused"):
        await client.offer(b"an offer", 20)


async def test_the_server_behind_a_proxy_is_judged(way: Way) -> None:
    way.pem.write_text(way.authority.issue("another.test").both)
    async with way.open(https=True) as (_, where):
        client = DirectClient(f"https://{NAME}/", ca=way.ca, proxy=f"http://{where}")
        with pytest.raises(SignalingError, match="does not verify: it is for another name"):
            await client.offer(b"an offer", 20)
