"""The working part of `nc`: how a connection that is reset ends, whichever direction is told of it."""

import contextlib
import os
import select
import socket
import struct
from collections.abc import Iterator

import pytest

from socks_tunnel.client import relaying


@pytest.fixture
def reset() -> Iterator[socket.socket]:
    """A connection whose peer has reset it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname(), timeout=60)
        ours.settimeout(None)
        theirs, _ = server.accept()
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        theirs.close()
        poll = select.poll()
        poll.register(ours, 0)
        assert poll.poll(60_000), "it is told of the reset"
        with ours:
            yield ours


@pytest.mark.parametrize("first", ["up", "down"])
def test_a_reset_is_a_failure_whichever_direction_is_told_of_it(
    reset: socket.socket, first: str
) -> None:
    """The kernel tells the reset to one call; others find an end in order, or a closed pipe."""
    source, filled = os.pipe()
    os.write(filled, b"x")
    os.close(filled)
    sink = os.open(os.devnull, os.O_WRONLY)
    ended = relaying._Ended()

    def up() -> None:
        relaying._up(reset, source, ended)

    def down() -> None:
        relaying._down(reset, b"", sink, ended, interactive=False)

    try:
        for direction in (up, down) if first == "up" else (down, up):
            direction()
    finally:
        os.close(source)
        with contextlib.suppress(OSError):  # it may be closed already
            os.close(sink)
    with pytest.raises(relaying.RelayError, match="the connection was lost: Connection reset by"):
        ended.wait()
