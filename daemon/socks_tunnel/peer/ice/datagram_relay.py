"""A relay that a signalling service offers, as one more candidate of ICE.

The candidate's address leads nowhere: it is one of the discard-only prefix of RFC 6666, and names
the channel at the relay. So it fits into any SDP. A peer that does not know the relay sends a few
checks that are discarded::

    100:0:0:0 : CHANNEL 8 bytes    port 1: the side that made the offer, which chose the channel
                                   port 2: the side that answers, on the same channel

Both sides know each other's address from offer and answer, and the relay names the sender of
datagrams. The priority is the lowest of all candidates, because any other working path is better.
"""

import asyncio
import ipaddress
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from socks_tunnel.protocol.addresses import IPAddress
from socks_tunnel.protocol.datagram_relay import DatagramRelay
from socks_tunnel.protocol.rendezvous_relay import CHANNEL_SIZE

NETWORK: Final = ipaddress.IPv6Network("100::/64")
"""RFC 6666: routers discard what is sent there, and no host has such an address."""

OFFERED_PORT: Final = 1
ANSWERED_PORT: Final = 2


def is_channel_address(address: IPAddress | None) -> bool:
    """Returns whether an address names a channel."""
    return isinstance(address, ipaddress.IPv6Address) and address in NETWORK


def channel_address(channel: bytes) -> str:
    """Returns the address that names a channel."""
    return str(NETWORK[int.from_bytes(channel)])


def choose_channel(remote: Iterable[IPAddress]) -> tuple[bytes, int] | None:
    """Returns the channel and our port there, from the peer's candidates, if they are known.

    Returns None if the peer's offer has no channel, because then there is no common relay.
    """
    remote = list(remote)
    named = next((address for address in remote if is_channel_address(address)), None)
    if named is not None:
        return named.packed[-CHANNEL_SIZE:], ANSWERED_PORT
    return None if remote else (secrets.token_bytes(CHANNEL_SIZE), OFFERED_PORT)


class ChannelTransport(asyncio.DatagramTransport):
    """A channel that looks like a UDP socket, owned by the StunProtocol that it feeds.

    Datagrams that are sent in one turn of the event loop leave together. `problem` is called once
    for each reason for which the relay refuses datagrams.
    """

    def __init__(
        self,
        relay: DatagramRelay,
        channel: bytes,
        port: int,
        receiver: asyncio.DatagramProtocol,
        problem: Callable[[str], None],
    ) -> None:
        super().__init__()
        self.dropped = 0
        """Number of datagrams for another address than the peer's."""
        self._relay = relay
        self._own = channel_address(channel), port
        self._peer = self._own[0], OFFERED_PORT + ANSWERED_PORT - port
        self._receiver = receiver
        self._problem = problem
        self._told: set[str] = set()
        self._closing = False
        self._waiting: list[bytes] = []
        self._loop = asyncio.get_running_loop()
        self._channel = relay.open(channel, self)
        receiver.connection_made(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """`sockname`: our address at the relay; `relay`: the relay itself."""
        if name == "sockname":
            return self._own
        return self._relay if name == "relay" else default

    def is_closing(self) -> bool:
        """Returns whether nothing more is sent."""
        return self._closing

    def sendto(self, data: Any, addr: Any = None) -> None:
        """Sends a datagram to the peer. As with UDP, it may be lost."""
        if self._closing or addr != self._peer:
            self.dropped += 1
            return
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(bytes(data))

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._channel.send(waiting)

    def relayed(self, datagrams: Sequence[bytes]) -> None:
        """Takes datagrams of the peer's."""
        for datagram in datagrams:
            if self._closing:
                return
            self._receiver.datagram_received(datagram, self._peer)

    def refused(self, why: str) -> None:
        """Reports why datagrams are not relayed."""
        if why not in self._told:
            self._told.add(why)
            self._problem(f"{self._relay.server}: {why}")

    def close(self) -> None:
        """Leaves the channel after earlier datagrams. The receiver is told soon."""
        if not self._closing:
            self._flush()  # the peer learns of the end from one of these datagrams
            self._closing = True
            self._channel.close()
            self._loop.call_soon(self._receiver.connection_lost, None)

    abort = close
