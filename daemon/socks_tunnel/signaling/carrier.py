"""The interface between the makers of links and the carriers that deliver their envelopes.

A carrier moves envelopes. It is not trusted: only the signature on each envelope counts
(:mod:`socks_tunnel.signaling.envelope`). The direct one is HTTP to the endpoint itself
(:mod:`socks_tunnel.signaling.direct`); others go through a service in the middle.

::

    gateway                                                    endpoint
    OutgoingCarrier.offer(offer)   ----- envelope ----->   the OfferHandler of an IncomingCarrier
                    (answer, handle)  <---- envelope -----     Answered(envelope, session_id)
    OutgoingCarrier.bye(handle, bye)  -- envelope ----->   its ByeHandler(session_id, envelope)

The handle at the gateway and the `session_id` at the endpoint name the same session. Only the
carrier maps one to the other.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from socks_tunnel.protocol.datagram_relay import DatagramRelay

remote_address: ContextVar[str] = ContextVar("remote_address", default="")
"""Origin of the envelope that is being handled, for log lines: an IP address, `local`, or the name
of a service."""


IceServers = Sequence[Mapping[str, object]]
"""STUN and TURN servers as :class:`socks_tunnel.peer.ice.settings.IceSettings` takes them."""

offered_servers: ContextVar[IceServers] = ContextVar("offered_servers", default=())
"""STUN and TURN servers from the carrier of the envelope that is being handled."""


RelayTo = Callable[[bytes], DatagramRelay | None]
"""Returns the carrier's relay to the peer with this public key; None if it has none."""

offered_relay: ContextVar[RelayTo] = ContextVar("offered_relay", default=lambda _: None)
"""The relay of the carrier that brought the envelope that is being handled."""


class SignalingError(Exception):
    """The peer cannot be reached, or refused; the text is a sentence for the log."""


class SignalingRefused(SignalingError):  # noqa: N818 - it is an answer, and not a fault
    """The peer was reached and refused: another attempt would get the same answer."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An accepted offer: the envelope of the answer, and the name of the session.

    `session_id` must consist of characters that need no escape in a URL, such as hex digits.
    """

    envelope: bytes
    session_id: str


OfferHandler = Callable[[bytes], Awaitable[Answered | None]]
"""Gets the envelope of an offer; returns the answer, or None if it is rejected."""

ByeHandler = Callable[[str, bytes], Awaitable[bool]]
"""Gets the session's name and the envelope of a goodbye; returns whether it was accepted."""

JoinHandler = Callable[[bytes], Awaitable[bytes | None]]
"""Gets a request to join (:mod:`socks_tunnel.signaling.joining`); returns the answer, or None."""


@dataclass(frozen=True, slots=True)
class Handlers:
    """The handlers of incoming messages."""

    offer: OfferHandler
    bye: ByeHandler
    join: JoinHandler


class OutgoingCarrier(Protocol):
    """Sends offers to one endpoint."""

    @property
    def name(self) -> str:
        """The name of the destination, for log lines; it contains no secrets."""

    async def ice_servers(self, timeout: float) -> IceServers:  # noqa: ASYNC109
        """Waits for the STUN and TURN servers that the carrier offers, and returns them.

        Raises :class:`SignalingError` if they are not known within `timeout` seconds. An offer
        would not get through either then.
        """

    def relay(self) -> DatagramRelay | None:
        """Returns the carrier's own relay for datagrams to the endpoint; None if it has none.

        Called after :meth:`ice_servers`.
        """

    async def offer(self, envelope: bytes, timeout: float) -> tuple[bytes, str]:  # noqa: ASYNC109
        """Delivers an offer. Returns the envelope of the answer, and the handle for :meth:`bye`.

        Raises :class:`SignalingError` if nothing usable comes within `timeout` seconds.
        """

    async def bye(self, handle: str, envelope: bytes) -> None:
        """Ends the session that an offer began; bounded in time. Raises :class:`SignalingError`."""

    async def appeared(self) -> None:
        """Waits until the endpoint becomes reachable after it was not (presence).

        A caller that waits before its next attempt then dials at once. A carrier without presence
        never returns.
        """


class IncomingCarrier(Protocol):
    """Receives offers from anybody. Its creator passes the handlers."""

    async def start(self) -> None:
        """Begins to accept envelopes.

        Raises :class:`OSError` if that is not possible on this host.
        """

    async def stop(self) -> None:
        """Accepts no more envelopes. The call is bounded in time."""
