"""Tells a rendezvous service how busy this host is, while there is a connection to it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import replace

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.rendezvous import encode
from socks_tunnel.protocol.rendezvous_load import COUNT_MAX, VERSION_MAX, Load, tell_forever
from socks_tunnel.signaling.carrier import SignalingError

_log = logging.getLogger(__name__)


class LoadTold:
    """Reports the load to one service. `current` returns it; with None, nothing is reported."""

    def __init__(
        self, current: Callable[[], Load] | None, send: Callable[[bytes], Awaitable[None]]
    ) -> None:
        self._current = current
        self._send = send
        self._task: asyncio.Task[None] | None = None

    def opened(self, period: int) -> None:
        """Begins a connection to a service that accepts a load every `period` seconds; 0: never."""
        if self._current is not None and period:
            self._task = spawn("tell the rendezvous the load", self._tell(self._current, period))

    def closed(self) -> None:
        """Notes that the connection has ended."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _tell(self, current: Callable[[], Load], period: int) -> None:
        async def send(load: Load) -> None:
            fitting = replace(
                load,
                flows=min(load.flows, COUNT_MAX),
                links=min(load.links, COUNT_MAX),
                version=load.version[:VERSION_MAX],
            )
            await self._send(encode(fitting))

        try:
            await tell_forever(current, period, send, asyncio.sleep)
        except SignalingError as error:
            _log.debug("%s", error)  # the next connection sends it
