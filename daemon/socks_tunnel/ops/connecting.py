"""Connects sockets to literal addresses on the event loop."""

import asyncio
import errno
import os
import socket


async def connect_to(sock: socket.socket, address: tuple[object, ...], *, where: str = "") -> None:
    """Connects a non-blocking socket to a literal address.

    Raises :class:`OSError`, whose text ends with `where`. It replaces `loop.sock_connect`, because
    uvloop's version passes even a literal address through getaddrinfo in a thread. The four
    wake-ups of that are most of the cost of a connection.
    """
    code = sock.connect_ex(address)
    if code == errno.EINPROGRESS:
        loop = asyncio.get_running_loop()
        writable: asyncio.Future[None] = loop.create_future()
        loop.add_writer(sock, _wake, writable)
        try:
            await writable
        finally:
            loop.remove_writer(sock)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise OSError(code, f"{os.strerror(code)}{where}")


def _wake(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
