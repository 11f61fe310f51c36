"""What control messages and datagrams may have in flight beyond the window of all."""

from socks_tunnel.peer.fast.outstanding import ABANDONED, ACKED, IN_FLIGHT, LOST, Chunk
from socks_tunnel.peer.fast.rate import Burst
from socks_tunnel.peer.fast.streams import DATAGRAM, Message, OutboundStream
from socks_tunnel.peer.fast.urgent import URGENT_PACKETS, UrgentWindow

PACKET = 1_000


def chunk(size: int) -> Chunk:
    message = Message(OutboundStream(1, DATAGRAM), 53, b"")
    return Chunk(1, size, message, 1, Burst(0.0, 0, 0.0, 0.0, app_limited=False))


def test_what_is_in_flight_takes_room() -> None:
    window = UrgentWindow()
    assert window.room(PACKET) == URGENT_PACKETS * PACKET
    window.sent([chunk(600), chunk(400)])
    assert window.room(PACKET) == URGENT_PACKETS * PACKET - 1_000
    window.sent([chunk(URGENT_PACKETS * PACKET)])
    assert window.room(PACKET) < 0


def test_what_is_settled_gives_its_room_back() -> None:
    window = UrgentWindow()
    chunks = [chunk(100) for _ in range(4)]
    window.sent(list(chunks))
    for one, state in zip(chunks, (ACKED, ABANDONED, LOST, IN_FLIGHT), strict=True):
        one.state = state
    assert window.room(PACKET) == URGENT_PACKETS * PACKET - 100
