"""A request that is given up leaves no socket, at whatever moment of the TLS handshake."""

import asyncio
import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvloop

from socks_tunnel.signaling.http_client import _Stream
from socks_tunnel.signaling.tls import client_context, read_server_certificate
from support.certificates import Authority


class Server:
    """Does a handshake with one client, and then says nothing more, not even a close_notify."""

    def __init__(self, directory: Path) -> None:
        authority = Authority("Test Root")
        self.ca = directory / "ca.pem"
        self.ca.write_text(authority.certificate)
        path = directory / "server.pem"
        path.touch(0o600)
        path.write_text(authority.issue("127.0.0.1").both)
        self._context = read_server_certificate(path, None).context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self.port: int = self._listening.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        sock, _ = self._listening.accept()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = self._context.wrap_bio(incoming, outgoing, server_side=True)
        with sock, contextlib.suppress(ConnectionResetError):  # the client has given up
            while True:
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    sock.sendall(outgoing.read())
                    data = sock.recv(65_536)
                    if not data:
                        return
                    incoming.write(data)
                else:
                    break
            sock.sendall(outgoing.read())
            self._ended.wait(60)

    def close(self) -> None:
        self._ended.set()
        self.thread.join()
        self._listening.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.close()


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Any], None]:
    """Run a coroutine on each kind of event loop."""

    def run(coroutine: Any) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(coroutine)

    return run


def sockets() -> set[str]:
    """The sockets that this process has open."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.add(str(link.readlink()))
        except FileNotFoundError:
            continue
    return {each for each in found if each.startswith("socket:")}


async def cancelled_at(server: Server, moment: str) -> None:
    """Opens a stream, gives it up at that moment, and waits until its socket is gone."""
    sock = socket.create_connection(("127.0.0.1", server.port))
    sock.setblocking(False)
    own = f"socket:[{os.fstat(sock.fileno()).st_ino}]"
    stream = _Stream(sock)
    opening = asyncio.ensure_future(stream.open(client_context(server.ca), "127.0.0.1"))
    made = stream.connection_made

    def connection_made(transport: asyncio.BaseTransport) -> None:
        made(transport)
        if moment == "the handshake is done":
            opening.cancel()

    stream.connection_made = connection_made  # type: ignore[method-assign]  # to know the moment
    if moment == "at once":
        opening.cancel()
    elif moment == "nothing was sent yet":
        await asyncio.sleep(0)
        opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening
    stream.abort(reset=True)
    async with asyncio.timeout(25):  # a TLS shutdown that nobody answers takes 30
        while own in sockets():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("moment", ["at once", "nothing was sent yet", "the handshake is done"])
def test_no_socket_is_left(run: Callable[[Any], None], server: Server, moment: str) -> None:
    run(cancelled_at(server, moment))
