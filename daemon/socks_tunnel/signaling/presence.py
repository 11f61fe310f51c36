"""Which of the watched keys are at a rendezvous service, according to the service."""

import asyncio
import random
from collections.abc import Collection
from typing import Final

from socks_tunnel.protocol.rendezvous import Presence
from socks_tunnel.protocol.rendezvous_load import Load

APPEARED_PERIOD: Final = 5.0
"""Seconds in which one key may appear once, so that a false service cannot cause endless
dialling."""

APPEARED_SPREAD: Final = 0.5
"""Seconds over which the callers that waited for the same peer are spread."""


class PresenceBoard:
    """Which peers are present, and who waits for a peer to appear."""

    def __init__(self) -> None:
        self._watched: Collection[bytes] = frozenset()
        self._online: set[bytes] = set()
        self.loads: dict[bytes, Load] = {}
        """The load that present peers have reported."""
        self._appeared_at: dict[bytes, float] = {}
        self._appearing: dict[bytes, set[asyncio.Future[None]]] = {}

    def watch(self, keys: frozenset[bytes]) -> None:
        """Replaces the watched keys."""
        self._watched = keys
        self._online &= keys
        self.loads = {key: load for key, load in self.loads.items() if key in keys}
        self._appeared_at = {key: at for key, at in self._appeared_at.items() if key in keys}

    def clear(self) -> None:
        """Forgets who is present, because the connection has ended."""
        self._online.clear()
        self.loads.clear()

    def see(self, presence: Presence) -> None:
        """Takes a presence message of the service."""
        self._online.difference_update(presence.offline)
        for key in presence.offline:
            self.loads.pop(key, None)
        self.loads.update((key, load) for key, load in presence.loads if key in self._watched)
        now = asyncio.get_running_loop().time()
        for key in presence.online:
            if key not in self._watched or key in self._online:
                continue
            self._online.add(key)
            if now - self._appeared_at.get(key, -APPEARED_PERIOD) < APPEARED_PERIOD:
                continue
            self._appeared_at[key] = now
            for future in self._appearing.pop(key, ()):
                if not future.done():
                    future.set_result(None)

    async def appeared(self, key: bytes) -> None:
        """Waits until a key appears. For one key this happens at most once in some time."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._appearing.setdefault(key, set()).add(future)
        try:
            await future
        finally:
            futures = self._appearing.get(key)
            if futures is not None:
                futures.discard(future)
                if not futures:
                    del self._appearing[key]
        await asyncio.sleep(random.uniform(0, APPEARED_SPREAD))  # noqa: S311 - no secret
