"""How far a FORWARD-TSN goes, and when it is sent."""

from socks_tunnel.peer.fast.forwarding import Forwarding
from socks_tunnel.peer.fast.outstanding import ABANDONED, ACKED, IN_FLIGHT, Chunk
from socks_tunnel.peer.fast.rate import Burst
from socks_tunnel.peer.fast.rtt import RTO_INITIAL, RoundTrip
from socks_tunnel.peer.fast.streams import NORMAL, Message, OutboundStream


def chunk(tsn: int, state: int, *, stream: int = 1, unordered: bool = False) -> Chunk:
    message = Message(OutboundStream(stream, NORMAL), 53, b"x", unordered=unordered)
    message.number = tsn
    message.abandoned = state == ABANDONED
    made = Chunk(tsn, 0, message, tsn, Burst(0.0, 0, 0.0, 0.0, app_limited=False))
    made.state = state
    return made


def test_it_goes_over_what_was_given_up_and_no_further() -> None:
    made = Forwarding(9)
    assert made.may_skip(chunk(10, ABANDONED))
    assert made.may_skip(chunk(11, ABANDONED, stream=2, unordered=True))
    assert not made.may_skip(chunk(12, IN_FLIGHT))
    assert not made.may_skip(chunk(12, ACKED))
    assert made.point == 11
    made.settle(9, 9, 5.0, RoundTrip())
    assert made.at == 5.0
    assert made.sent(5.0, RoundTrip()) == [(1, 10, 0), (2, 11, 1)]
    assert made.at == 5.0 + RTO_INITIAL


def test_what_arrived_of_a_message_that_was_given_up_is_skipped_too() -> None:
    made = Forwarding(9)
    arrived = chunk(10, ACKED)
    arrived.message.abandoned = True
    assert made.may_skip(arrived)


def test_what_the_peer_has_moved_over_is_named_no_more() -> None:
    made = Forwarding(9)
    made.may_skip(chunk(10, ABANDONED))
    made.may_skip(chunk(11, ABANDONED, stream=2))
    made.acknowledged(10)
    made.settle(11, 10, 5.0, RoundTrip())
    assert made.at > 5.0
    assert made.sent(6.0, RoundTrip()) == [(2, 11, 0)]
    made.acknowledged(20)
    made.settle(11, 20, 7.0, RoundTrip())
    assert (made.point, made.at) == (20, 0.0)
