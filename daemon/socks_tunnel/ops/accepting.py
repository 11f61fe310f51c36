"""Accepting a connection so that a cancelled wait loses none."""

import asyncio
import socket
from typing import Any


async def accept(listening: socket.socket) -> tuple[socket.socket, Any]:
    """Returns the next connection of a non-blocking listening socket, and its peer's address.

    The connection does not block. Raises :class:`OSError` if one cannot be accepted.

    `loop.sock_accept` accepts in one turn of the event loop and wakes its caller in the next. A
    task that is cancelled between the two never sees the connection, and nobody closes it. Here,
    the connection is accepted by the caller itself, once it is awake.
    """
    while True:
        await _readable(listening)
        try:
            sock, address = listening.accept()
        except (BlockingIOError, InterruptedError):  # another process has accepted it
            continue
        sock.setblocking(False)
        return sock, address


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(sock, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock)
