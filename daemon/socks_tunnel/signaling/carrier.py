"""The interface between who makes links and whatever carries their envelopes to the other host.

A carrier moves envelopes, and nobody trusts it: what counts is the signature on each of them
(:mod:`socks_tunnel.signaling.envelope`). The direct one is HTTP to the endpoint itself
(:mod:`socks_tunnel.signaling.direct`); others go through a service in the middle.

::

    gateway                                                    endpoint
    OutgoingCarrier.offer(offer)   ----- envelope ----->   the OfferHandler of an IncomingCarrier
                    (answer, handle)  <---- envelope -----     Answered(envelope, session_id)
    OutgoingCarrier.bye(handle, bye)  -- envelope ----->   its ByeHandler(session_id, envelope)

A handle names at the gateway what `session_id` names at the endpoint; only the carrier knows how.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

from socks_tunnel.protocol.datagram_relay import DatagramRelay

remote_address: ContextVar[str] = ContextVar("remote_address", default="")
"""Where the envelope that is being handled came from, for log lines: an IP address, `local`, or
the name of a service."""


IceServers = Sequence[Mapping[str, object]]
"""STUN and TURN servers as :class:`socks_tunnel.peer.ice.settings.IceSettings` takes them."""

offered_servers: ContextVar[IceServers] = ContextVar("offered_servers", default=())
"""Servers that the carrier of the envelope that is being handled offers for the connection."""


RelayTo = Callable[[bytes], DatagramRelay | None]
"""Returns the carrier's relay to the peer with this public key; None where it has none."""

offered_relay: ContextVar[RelayTo] = ContextVar("offered_relay", default=lambda _: None)
"""What the carrier of the envelope that is being handled can relay for the connection."""


class SignalingError(Exception):
    """The peer cannot be reached, or refused; the text is a sentence for the log."""


class SignalingRefused(SignalingError):  # noqa: N818 - the answer, and not a fault
    """The peer was reached and said no: another attempt would get the same answer."""


@dataclass(frozen=True, slots=True)
class Answered:
    """An offer was accepted: the answer's envelope, and the name that the session gets.

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
    """Who handles what comes in."""

    offer: OfferHandler
    bye: ByeHandler
    join: JoinHandler


class OutgoingCarrier(Protocol):
    """Offers out, to one endpoint."""

    @property
    def name(self) -> str:
        """Where it leads, for log lines. Without secrets."""

    async def ice_servers(self, timeout: float) -> IceServers:  # noqa: ASYNC109
        """Returns the STUN and TURN servers that the carrier offers; waits until it knows them.

        Raises :class:`SignalingError` if it does not know within `timeout` seconds: an offer would
        not get through either.
        """

    def relay(self) -> DatagramRelay | None:
        """Returns the carrier's own way for datagrams to the endpoint; None where it has none.

        To be asked for after :meth:`ice_servers`.
        """

    async def offer(self, envelope: bytes, timeout: float) -> tuple[bytes, str]:  # noqa: ASYNC109
        """Brings an offer; returns the envelope of the answer, and the handle for :meth:`bye`.

        Raises :class:`SignalingError` if nothing usable comes within `timeout` seconds.
        """

    async def bye(self, handle: str, envelope: bytes) -> None:
        """Ends the session that an offer began; bounded in time. Raises :class:`SignalingError`."""

    async def appeared(self) -> None:
        """Waits until the endpoint has become reachable after it was not (presence).

        Whoever waits to dial again then dials at once. A carrier that cannot know never returns.
        """


class IncomingCarrier(Protocol):
    """Offers in, from anybody; who made it gave it the handlers."""

    async def start(self) -> None:
        """Begins to take envelopes. Raises :class:`OSError` if that is not possible here."""

    async def stop(self) -> None:
        """Takes no more envelopes; bounded in time."""
