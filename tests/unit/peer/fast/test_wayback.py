"""How long SACKs wait on the way back, by the peer's stamps."""

import struct

import pytest

from socks_tunnel.peer.fast.wayback import FASTEST_PERIOD, WayBack, stamp
from socks_tunnel.peer.fast.wire import STAMP, STAMP_HEADER

OFFSET = 123_456_789


def word(now: float, offset: int = OFFSET) -> int:
    kind, flags, length, value = struct.unpack("!BBHL", stamp(now, offset))
    assert (kind, flags, length) == (STAMP, 0, STAMP_HEADER)
    return int(value)


def test_who_does_not_know_a_stamp_skips_it() -> None:
    # RFC 9260 section 3.2: 10 in the two high bits means "skip, do not report".
    assert STAMP >> 6 == 0b10


@pytest.mark.parametrize("start", [5.0, 4_294.9, 1e7])
@pytest.mark.parametrize("offset", [0, OFFSET, 0xFFFF_FFFF])
def test_what_is_beyond_the_fastest_has_waited(start: float, offset: int) -> None:
    """Also where the 32 bits of either clock begin again."""
    way, waits = WayBack(), [0.050, 0.0, 0.100, 0.020]
    found = []
    for turn, wait in enumerate(waits):
        sent = start + turn * 0.1
        found.append(way.stamped(word(sent, offset), sent + 0.020 + wait))
    assert way.known
    assert found == pytest.approx([0.0, 0.0, 0.100, 0.020], abs=1e-5)


def test_clocks_that_drift_are_followed() -> None:
    way, drift = WayBack(), 500e-6
    for turn in range(1_000):
        sent = 100 + turn * 0.1
        waited = way.stamped(word(sent), sent * (1 + drift) + 0.020)
        assert 0 <= waited <= 2 * FASTEST_PERIOD * drift + 1e-5


def test_a_path_that_became_longer_is_believed_after_two_periods() -> None:
    way = WayBack()
    way.stamped(word(1.0), 1.020)
    at, step = 1.0, FASTEST_PERIOD / 20
    found = []
    for _ in range(45):
        at += step
        found.append(way.stamped(word(at), at + 0.090))
    assert found[0] == pytest.approx(0.070, abs=1e-5)
    assert found[-1] == pytest.approx(0.0, abs=1e-5)


def test_it_begins_anew_with_the_last_stamp() -> None:
    way = WayBack()
    way.stamped(word(1.0), 1.020)
    assert way.stamped(word(2.0), 62.020) == pytest.approx(60.0, abs=1e-5)
    way.restart(62.020)
    assert way.stamped(word(3.0), 63.070) == pytest.approx(0.050, abs=1e-5)
