"""A bug of ours that a flow meets in a socket's or a timer's callback costs that flow alone."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort, encode_address
from socks_tunnel_workers.relay.tcp import TcpRelay
from support.worker_pair import LINK, Pair, worker_pair


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


async def connect(pair: Pair, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the echo server that has echoed once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", pair.port)
    writer.write(b"\5\1\0\5\1\0" + encode_address(HostPort("127.0.0.1", port)) + b"!")
    assert (await reader.readexactly(13))[12:] == b"!"
    return reader, writer


class Broken:
    """The socket of a flow, of which one method is a bug."""

    def __init__(self, sock: socket.socket, method: str) -> None:
        self._sock = sock
        self._method = method

    def __getattr__(self, name: str) -> Any:
        return self._fails if name == self._method else getattr(self._sock, name)

    def _fails(self, *_arguments: object) -> None:
        raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("where", ["readable", "sweep"])
@pytest.mark.parametrize("side", ["gateway", "endpoint"])
async def test_a_bug_in_a_callback_ends_its_flow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    side: str,
    where: str,
) -> None:
    monkeypatch.setattr("socks_tunnel_workers.upkeep.SWEEP_SECONDS", 0.02)
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    async with server, worker_pair(tmp_path) as pair, asyncio.timeout(60):
        port = server.sockets[0].getsockname()[1]
        broken_reader, broken_writer = await connect(pair, port)
        worker = pair.gateway_worker if side == "gateway" else pair.endpoint_worker
        (broken,) = worker.sessions[LINK].flows
        reader, writer = await connect(pair, port)
        assert isinstance(broken, TcpRelay)
        assert broken.sock is not None
        if where == "readable":
            broken.sock = cast("Any", Broken(broken.sock, "recv"))
            broken_writer.write(b"?")
        else:
            broken.on_detached()  # a socket that is not watched is asked for errors by the sweep
            broken.sock = cast("Any", Broken(broken.sock, "getsockopt"))
        with pytest.raises(ConnectionResetError):
            await broken_reader.read()
        writer.write(b"alive")
        assert await reader.readexactly(5) == b"alive"
        assert broken.ended
        assert [r.exc_info is not None for r in caplog.records if "met a bug" in r.message] == [
            True
        ]
        broken_writer.close()
        writer.close()
