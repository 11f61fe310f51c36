"""Two carriers to one endpoint: its own listener first, and then a rendezvous service."""

import logging
from typing import Final

from socks_tunnel.protocol.datagram_relay import DatagramRelay
from socks_tunnel.signaling.carrier import IceServers, OutgoingCarrier, SignalingError

_log = logging.getLogger(__name__)

DIRECT_SHARE: Final = 1 / 3
"""Part of an offer's time that the direct way may take. If it is filtered, it never answers."""

SERVERS_TIMEOUT: Final = 1.0
"""Seconds that an offer waits for the service to name its TURN servers."""


class DirectFirst:
    """Delivers an offer to the endpoint itself, or else through a service.

    Both carry the same envelope. If the first one was only late, the endpoint rejects the second as
    a repetition. The next attempt is another offer.
    """

    def __init__(self, direct: OutgoingCarrier, other: OutgoingCarrier) -> None:
        self._ways = {"direct": direct, "other": other}

    @property
    def name(self) -> str:
        """The name of the destination, for log lines."""
        return " or ".join(way.name for way in self._ways.values())

    async def ice_servers(self, timeout: float) -> IceServers:  # noqa: ASYNC109
        """Returns the servers of the service, if it can be reached. The direct way needs none."""
        try:
            return await self._ways["other"].ice_servers(min(timeout, SERVERS_TIMEOUT))
        except SignalingError:
            return ()

    def relay(self) -> DatagramRelay | None:
        """Returns the service's relay, which the endpoint uses if the offer comes through it."""
        return self._ways["other"].relay()

    async def offer(self, envelope: bytes, timeout: float) -> tuple[bytes, str]:  # noqa: ASYNC109
        """As :meth:`socks_tunnel.signaling.carrier.OutgoingCarrier.offer`."""
        direct, other = self._ways.values()
        first = timeout * DIRECT_SHARE
        try:
            answer, handle = await direct.offer(envelope, first)
        except SignalingError as error:
            _log.debug("%s; trying %s", error, other.name)
            failure = error
        else:
            return answer, f"direct {handle}"
        try:
            answer, handle = await other.offer(envelope, timeout - first)
        except SignalingError as error:
            raise SignalingError(f"{failure}; {error}") from None
        return answer, f"other {handle}"

    async def bye(self, handle: str, envelope: bytes) -> None:
        """Ends the session on the way on which it began. Raises :class:`SignalingError`."""
        way, _, its_handle = handle.partition(" ")
        await self._ways[way].bye(its_handle, envelope)

    async def appeared(self) -> None:
        """Waits until the service reports that the endpoint has connected."""
        await self._ways["other"].appeared()
