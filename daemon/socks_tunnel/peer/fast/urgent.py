"""The window of control messages and datagrams, which do not wait for that of all. No clock.

A congestion window that has collapsed, or that is full of packets whose fate is not known yet, is
the state of the bulk; whoever speaks should not be interrupted by it. So what is urgent may be sent
beyond the congestion window, beyond what recovery allows and ahead of the pacer, as long as little
of it is in flight: as much as RFC 6928 lets anybody send who knows nothing of the path. It counts
as in flight for all others, so that the bulk makes room for it.
"""

from typing import Final

from socks_tunnel.peer.fast.congestion import INITIAL_PACKETS
from socks_tunnel.peer.fast.outstanding import IN_FLIGHT, Chunk

URGENT_PACKETS: Final = INITIAL_PACKETS
"""Full packets that may be in flight beyond what all may send."""


class UrgentWindow:
    """What was sent beyond the window of all."""

    __slots__ = ("_chunks",)

    def __init__(self) -> None:
        self._chunks: list[Chunk] = []

    def room(self, packet: int) -> int:
        """Returns how many bytes more may be sent, for packets of `packet` bytes."""
        if not self._chunks:
            return URGENT_PACKETS * packet
        self._chunks = [chunk for chunk in self._chunks if chunk.state == IN_FLIGHT]
        return URGENT_PACKETS * packet - sum([chunk.size for chunk in self._chunks])

    def sent(self, chunks: list[Chunk]) -> None:
        """Takes what was sent beyond the window of all."""
        self._chunks += chunks
