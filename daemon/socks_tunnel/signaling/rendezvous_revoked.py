"""Tells a rendezvous service which enrolments are revoked, while connected to it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.rendezvous_revoked import Revocation, Telling, encode_revocation
from socks_tunnel.signaling.carrier import SignalingError

_log = logging.getLogger(__name__)

Text = Callable[[Revocation], bytes]
"""Returns the bytes that the signature of a revocation covers."""


class RevokedTold:
    """Reports revoked keys to one service. `current` returns them, the latest one last."""

    def __init__(
        self,
        current: Callable[[], Sequence[bytes]] | None,
        send: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self._current = current
        self._send = send
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def opened(self, most: int, sign: Callable[[bytes], bytes], text: Text) -> None:
        """Begins a connection to a service that remembers so many keys; 0: it accepts none.

        `sign` signs, and `text` returns the bytes to sign on this connection.
        """
        if self._current is None or not most:
            return
        self._task = spawn(
            "tell the rendezvous who is revoked", self._tell(self._current, most, sign, text)
        )

    def changed(self) -> None:
        """Notes that other keys are revoked now."""
        self._changed.set()

    def closed(self) -> None:
        """Notes that the connection has ended."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _tell(
        self,
        current: Callable[[], Sequence[bytes]],
        most: int,
        sign: Callable[[bytes], bytes],
        text: Text,
    ) -> None:
        telling = Telling(most)
        try:
            while True:
                self._changed.clear()
                for said in telling.news(current()):
                    await self._send(encode_revocation(replace(said, signature=sign(text(said)))))
                await self._changed.wait()
        except SignalingError as error:
            _log.debug("%s", error)  # the next connection sends it
