"""A chunk that was just sent."""

from socks_tunnel.peer.fast.outstanding import IN_FLIGHT, Chunk
from socks_tunnel.peer.fast.rate import Burst
from socks_tunnel.peer.fast.streams import NORMAL, Message, OutboundStream


def test_a_new_chunk_is_in_flight_and_was_sent_once() -> None:
    message = Message(OutboundStream(1, NORMAL), 53, b"abc")
    burst = Burst(1.0, 0, 1.0, 1.0, app_limited=False)
    chunk = Chunk(7, 24, message, 1, burst)
    assert (chunk.state, chunk.sends, chunk.size) == (IN_FLIGHT, 1, 24)
    assert (chunk.flags, chunk.fragment, chunk.position, chunk.length) == (0, 0, 0, 0)
