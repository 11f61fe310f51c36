"""One peer that is reached through a rendezvous service."""

from socks_tunnel.protocol.datagram_relay import DatagramRelay
from socks_tunnel.signaling.carrier import IceServers
from socks_tunnel.signaling.rendezvous import Rendezvous


class RendezvousCarrier:
    """Delivers envelopes to one peer through a service."""

    def __init__(self, rendezvous: Rendezvous, key: bytes) -> None:
        self._rendezvous = rendezvous
        self._key = key

    @property
    def name(self) -> str:
        """The name of the destination, for log lines."""
        return self._rendezvous.url

    async def ice_servers(self, timeout: float) -> IceServers:  # noqa: ASYNC109
        """Returns the TURN servers of the service, with our logins for them."""
        return await self._rendezvous.ice_servers(timeout)

    def relay(self) -> DatagramRelay | None:
        """Returns the service's relay to the peer; None while the service relays nothing."""
        return self._rendezvous.relay.to(self._key)

    async def offer(self, envelope: bytes, timeout: float) -> tuple[bytes, str]:  # noqa: ASYNC109
        """As :meth:`socks_tunnel.signaling.carrier.OutgoingCarrier.offer`."""
        return await self._rendezvous.offer(self._key, envelope, timeout)

    async def bye(self, handle: str, envelope: bytes) -> None:
        """Ends the session that an offer began. Raises :class:`SignalingError`."""
        await self._rendezvous.bye(self._key, handle, envelope)

    async def appeared(self) -> None:
        """Waits until the service reports that the peer has appeared."""
        await self._rendezvous.appeared(self._key)
