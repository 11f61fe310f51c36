"""The HTTP server's connections at its end."""

import asyncio
import contextlib
import gc
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from socks_tunnel.ops.http_server import Bounds, HttpServer, Request, Response

BOUNDS = Bounds(
    connections=8, per_address=8, requests=8, body=100, read_timeout=10, handle_timeout=10
)


async def nothing(request: Request) -> Response:
    return Response(403)


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_connection_that_comes_as_the_server_stops_is_closed(
    factory: Callable[[], asyncio.AbstractEventLoop], turns: int, tmp_path: Path
) -> None:
    """Whatever has been done with it by then: a socket that is lost complains when it is freed."""
    path = str(tmp_path / "s")

    async def stopped() -> None:
        with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
            listening.bind(path)
            listening.listen()
            server = HttpServer("test", listening, nothing, BOUNDS, methods=frozenset({"POST"}))
            server.start()
            await asyncio.sleep(0)
            client.connect(path)
            for _ in range(turns):
                await asyncio.sleep(0)
            await server.stop()
            client.settimeout(5)
            with contextlib.suppress(ConnectionResetError):  # it was never accepted
                assert client.recv(1) == b""

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(stopped())
    gc.collect()
