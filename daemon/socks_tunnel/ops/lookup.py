"""Looks names up in daemon threads, and connects to the first address that answers.

`getaddrinfo(3)` cannot be interrupted, and takes 25 seconds if no name server answers. The threads
of an executor, and those of libuv, are joined when the process ends, which would delay the end by
that time. The threads here are daemon threads: the process ends without them.
"""

import asyncio
import contextlib
import itertools
import socket
import threading
from collections import deque
from typing import Final, TypeAlias

from socks_tunnel.ops.connecting import connect_to

LOOKUPS_MAX: Final = 32
"""Look-ups that this process may have under way at a time. A further one fails at once."""

ATTEMPT_DELAY: Final = 0.25
"""Seconds until the next address is tried in parallel (RFC 8305 section 5)."""

ADDRESSES_MAX: Final = 8
"""Addresses of one name that are tried."""

ANEW_DELAY: Final = 0.4
"""Seconds until an address that has not answered is tried by another connection. TCP waits 1 s for
the first time before it repeats a SYN (RFC 6298 section 2.1), and flows may wait for this one."""

WAITING_MAX: Final = 16
"""Connections that wait for an answer at a time. Beyond that, a further one replaces the oldest.
The first connection to each address is never replaced, so that slow paths have the time that they
need."""

AddressInfo: TypeAlias = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]

_under_way = 0


async def lookup(host: str, port: int) -> list[AddressInfo]:
    """Returns the addresses of a host for TCP, in the order of RFC 6724.

    Raises :class:`OSError`: :class:`socket.gaierror` if the name has no address or no name server
    answers, EAGAIN if too many look-ups are under way or no thread can be started. When the caller
    is cancelled, the thread goes on by itself and its result is dropped.
    """
    global _under_way  # noqa: PLW0603 - a limit of the process
    if _under_way >= LOOKUPS_MAX:
        raise BlockingIOError(f"{_under_way} name look-ups are under way already")
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[AddressInfo]] = loop.create_future()

    def finish(result: list[AddressInfo] | OSError) -> None:
        global _under_way  # noqa: PLW0603 - as above
        _under_way -= 1
        if answer.done():
            return  # the caller was cancelled
        if isinstance(result, OSError):
            answer.set_exception(result)
        else:
            answer.set_result(result)

    def work() -> None:
        result: list[AddressInfo] | OSError
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            result = [
                (family, address)
                for family, _, _, _, address in found
                if isinstance(
                    address[0], str
                )  # getaddrinfo gives other tuples if Python has no IPv6
            ]
        except OSError as error:
            result = error
        except UnicodeError:  # a label of the name is too long or empty
            result = socket.gaierror(socket.EAI_NONAME, "the name is not valid")
        with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
            loop.call_soon_threadsafe(finish, result)

    thread = threading.Thread(target=work, name="lookup", daemon=True)
    _under_way += 1
    try:
        thread.start()
    except RuntimeError as error:  # "can't start new thread"
        _under_way -= 1
        raise BlockingIOError(f"no thread can be started: {error}") from None
    return await answer


async def connect(host: str, port: int) -> socket.socket:
    """Returns a socket that is connected by TCP to the first address of `host` that answers.

    Addresses are tried beside each other, :data:`ATTEMPT_DELAY` apart, with the families in turn
    (RFC 8305). While none has answered, the first one is tried again by another connection each
    :data:`ANEW_DELAY`: TCP waits longer and longer before it repeats a lost SYN, and so may not
    notice for many seconds that the path works again. Raises :class:`OSError`: the error of the
    first address if none answers. There is no time-out here; the caller sets one.
    """
    addresses = _interleaved(await lookup(host, port))[:ADDRESSES_MAX]
    again = itertools.cycle(list(addresses))
    anew: deque[asyncio.Task[socket.socket]] = deque()
    first_left = len(addresses)
    loop = asyncio.get_running_loop()
    waiting: dict[asyncio.Task[socket.socket], None] = {}
    first_error: OSError | None = None
    try:
        while addresses or waiting:
            if addresses:
                attempt = loop.create_task(_attempt(*addresses.pop(0)), name="connect")
                waiting[attempt] = None
                first_left -= 1
                if first_left < 0:
                    anew.append(attempt)
            done, _ = await asyncio.wait(
                waiting,
                timeout=ATTEMPT_DELAY if addresses else ANEW_DELAY,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if not done and not addresses:
                addresses.append(next(again))
                if len(waiting) >= WAITING_MAX:
                    oldest = anew.popleft()
                    oldest.cancel()
                    del waiting[oldest]
            for task in done:
                del waiting[task]
                if task in anew:
                    anew.remove(task)
                error = task.exception()
                if error is None:
                    return task.result()
                if not isinstance(error, OSError):
                    raise error
                first_error = first_error or error
    finally:
        for task in waiting:
            task.cancel()
            task.add_done_callback(_close_late)
    assert first_error is not None, "lookup() returns addresses or raises"
    raise first_error


def _close_late(task: asyncio.Task[socket.socket]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _attempt(family: socket.AddressFamily, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        await connect_to(sock, address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _interleaved(addresses: list[AddressInfo]) -> list[AddressInfo]:
    """Returns the addresses with their families alternating (RFC 8305 section 4)."""
    if not addresses:
        return []
    first = addresses[0][0]
    ours = [address for address in addresses if address[0] == first]
    others = [address for address in addresses if address[0] != first]
    mixed: list[AddressInfo] = []
    while ours or others:
        mixed += ours[:1] + others[:1]
        del ours[:1], others[:1]
    return mixed
