"""A window that has held its sender up: how the receiver sees that, and what follows."""

import pytest

from socks_tunnel.protocol.streams import ReceiveStream


def stalled(waited: float, now: float, *, taken: int = 100) -> ReceiveStream:
    """Returns a stream whose update left at 1.0, and whose sender went on beyond the old LIMIT."""
    receive = ReceiveStream(100)
    receive.receive(50)
    receive.consume(50)
    receive.announce(1.0)
    assert receive.edge == 100
    receive.receive(50)
    receive.consume(taken - 50)
    receive.passed_edge(now, waited)
    assert receive.edge == -1
    return receive


@pytest.mark.parametrize(
    ("waited", "now", "starved"),
    [
        (0.010, 1.03125, True),
        (0.009, 1.03125, False),  # shorter than anything that says something
        (0.125, 1.75, True),
        (0.124, 1.75, False),  # its bytes came nearly all the time
    ],
)
def test_a_sender_that_stops_at_its_old_limit_is_held_up(
    waited: float, now: float, starved: bool
) -> None:
    assert stalled(waited, now).starved is starved


def test_a_client_that_takes_nothing_holds_its_sender_up_and_not_the_window() -> None:
    assert not stalled(0.1, 1.1, taken=99).starved


@pytest.mark.parametrize(
    ("elapsed", "window"), [(0.64, 200), (0.65, 100)], ids=["in reach", "beyond"]
)
def test_a_window_that_held_its_sender_up_grows_for_sixteen_round_trips(
    elapsed: float, window: int
) -> None:
    receive = stalled(0.1, 1.1)
    receive.receive(30)
    receive.consume(30)
    # 80 bytes since the last update; 16 round trips of 0.03125 s.
    receive.announce(1.0 + elapsed * 0.625, round_trip=0.03125, grow_to=1000)
    assert receive.window == window
    assert receive.starved is False, "each update has to find out anew"


def test_no_edge_is_looked_at_while_all_that_was_allowed_has_come() -> None:
    receive = ReceiveStream(100)
    receive.receive(100)
    receive.consume(60)
    receive.announce(1.0)
    assert receive.edge == -1


def test_an_edge_that_is_reached_is_looked_at_before_the_next_one() -> None:
    receive = ReceiveStream(100)
    receive.receive(50)
    receive.consume(50)
    receive.announce(1.0)
    receive.receive(50)
    receive.consume(50)
    receive.announce(1.5)
    assert receive.edge == 100
    receive.passed_edge(1.6, 0.1)
    assert receive.starved, "0.1 s of 0.6: the time counts from the first update"
    receive.passed_edge(1.7, 0.1)
    receive.receive(50)
    receive.consume(50)
    receive.announce(2.0)
    assert receive.edge == 200


def test_a_new_stream_looks_at_no_edge() -> None:
    receive = ReceiveStream(100)
    assert (receive.edge, receive.starved is False) == (-1, True)
