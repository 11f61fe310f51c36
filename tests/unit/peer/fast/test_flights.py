"""When the datagrams of a handshake are sent again, with time as a number."""

import itertools

from socks_tunnel.peer.fast.flights import (
    DATAGRAMS_MAX,
    LONGEST,
    REPEAT_AFTER,
    REPEATS_MAX,
    Flight,
)


def repeated(flight: Flight, until: float) -> list[float]:
    """When it is repeated, looked at whenever it is due."""
    moments = []
    while flight.due and flight.due <= until:
        now = flight.due
        if flight.repeat(now):
            moments.append(now)
    return moments


def test_a_flight_is_repeated_soon_and_then_each_second() -> None:
    flight = Flight()
    flight.wrote(b"hello", 100.0)
    assert flight.repeat(100.0 + REPEAT_AFTER - 0.01) == []
    moments = repeated(flight, 125.0)
    assert moments[0] == 100.0 + REPEAT_AFTER
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == LONGEST


def test_what_is_written_before_the_peer_is_listened_to_is_one_flight() -> None:
    flight = Flight()
    flight.wrote(b"certificate", 1.0)
    flight.wrote(b"done", 1.0)
    assert flight.repeat(2.0) == [b"certificate", b"done"]
    flight.turn()
    flight.turn()
    assert flight.repeat(4.0) == [b"certificate", b"done"], "nothing new was written"
    flight.wrote(b"finished", 4.1)
    assert flight.repeat(4.2) == []
    assert flight.repeat(4.1 + REPEAT_AFTER) == [b"finished"]


def test_it_is_repeated_so_often_and_has_so_many_datagrams() -> None:
    flight = Flight()
    for number in range(DATAGRAMS_MAX + 5):
        flight.wrote(b"%d" % number, 1.0)
    assert len(flight.repeat(2.0)) == DATAGRAMS_MAX
    assert len(repeated(flight, 1e6)) == REPEATS_MAX - 1
    assert not flight.due
    assert flight.datagrams == []


def test_when_it_is_over_nothing_is_repeated() -> None:
    flight = Flight()
    assert flight.repeat(1.0) == []
    flight.wrote(b"finished", 1.0)
    flight.over()
    assert not flight.due
    assert flight.repeat(9.0) == []
