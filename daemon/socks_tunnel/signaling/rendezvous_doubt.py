"""Finds out quickly whether a connection to a rendezvous service still works.

The heartbeat of a WebSocket needs half a minute to notice that the other side has gone, and TCP
retransmits at growing intervals. A host that has just moved from one network to another, or whose
flows wait for a link, cannot wait so long. So a PING (RFC 6455 section 5.5.2) is sent on a
connection in doubt. The connection counts as ended unless something arrives within a few seconds.
"""

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aiohttp

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip

_log = logging.getLogger(__name__)

ANSWER_WITHIN: Final = 2.0
"""Seconds within which something must arrive on a connection in doubt. Two round trips by
satellite, or a loss that TCP repairs at once, take less."""


class Unanswered(Exception):  # noqa: N818 - the result of a doubt
    """The connection was in doubt, and nothing has arrived on it."""


class Doubt:
    """The doubt about one connection. `ws` is read by the awaitables that `receive` returns."""

    def __init__(
        self, ws: aiohttp.ClientWebSocketResponse, receive: Callable[[], Awaitable[None]]
    ) -> None:
        self._ws = ws
        self._receive = receive
        self._patience: asyncio.Timeout | None = None
        self._doubted = False

    async def read(self) -> None:
        """Receives until the end. Raises :class:`Unanswered`, and what `receive` raises."""
        try:
            async with asyncio.timeout(None) as self._patience:
                while True:
                    await self._receive()
                    if self._doubted:
                        self._doubted = False
                        self._patience.reschedule(None)
        except TimeoutError:
            if self._patience is None or not self._patience.expired():
                raise
            raise Unanswered from None

    def begin(self) -> None:
        """Sends a PING to the service, unless one is under way already."""
        if self._doubted or self._patience is None or self._patience.expired():
            return
        self._doubted = True
        gone = is_gone(self._ws.get_extra_info("sockname"))
        now = asyncio.get_running_loop().time()
        self._patience.reschedule(now if gone else now + ANSWER_WITHIN)
        if not gone:
            spawn("ask the rendezvous whether it is there", self._ask())

    async def _ask(self) -> None:
        try:
            await self._ws.ping()
        except (OSError, RuntimeError, aiohttp.ClientError) as error:
            _log.debug("the connection has ended already: %s", clip(error))


def is_gone(sockname: Any) -> bool:
    """Returns whether the host has lost the address of a socket.

    `sockname` is what :meth:`socket.socket.getsockname` returned, or None where that is not known.
    """
    if not isinstance(sockname, tuple):
        return False
    family = socket.AF_INET if len(sockname) == 2 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((sockname[0], 0, *sockname[2:]))
    except OSError as error:
        return error.errno == errno.EADDRNOTAVAIL
    return False
