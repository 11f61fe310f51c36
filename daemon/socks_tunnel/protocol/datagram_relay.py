"""Interfaces between ICE and a signalling service that relays datagrams."""

from collections.abc import Sequence
from typing import Literal, Protocol


class RelayedReceiver(Protocol):
    """Takes what comes through a channel: plain calls on the event loop."""

    def relayed(self, datagrams: Sequence[bytes]) -> None:
        """Takes datagrams, of which only their number and lengths were checked."""

    def refused(self, why: str) -> None:
        """Learns that datagrams were not relayed; `why` is a sentence without its end."""


class RelayChannel(Protocol):
    """What one connection sends through a relay."""

    def send(self, datagrams: Sequence[bytes]) -> None:
        """Sends datagrams; as with UDP, they may be lost."""

    def close(self) -> None:
        """Takes no more datagrams."""


class DatagramRelay(Protocol):
    """A way to one peer for datagrams, through a service that both are connected to."""

    @property
    def server(self) -> str:
        """The service, for log and status."""

    @property
    def family(self) -> Literal["ipv4", "ipv6"]:
        """Of the addresses on the way to the service."""

    def open(self, channel: bytes, receiver: RelayedReceiver) -> RelayChannel:
        """Returns a channel of that name, whose datagrams go to `receiver`."""
