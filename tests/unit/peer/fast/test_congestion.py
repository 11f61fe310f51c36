"""What holds for every congestion controller."""

import pytest

from socks_tunnel.peer.fast.congestion import (
    INITIAL_PACKETS,
    WINDOW_BYTES_MAX,
    Acked,
    CongestionName,
)
from socks_tunnel.peer.fast.controllers import controller

MSS = 1_432
NAMES: tuple[CongestionName, ...] = ("cubic", "bbr")


def event(
    now: float, acked: int = 10 * MSS, *, flight: int = 0, rtt: float = 0.04, **more: object
) -> Acked:
    made = Acked()
    made.now, made.acked, made.flight = now, acked, flight
    made.rtt = made.there = made.srtt = made.min_rtt = rtt
    made.rate = acked / rtt
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_the_first_window_is_ten_packets(name: CongestionName) -> None:
    assert controller(name, MSS).window == INITIAL_PACKETS * MSS


@pytest.mark.parametrize("name", NAMES)
def test_the_window_has_a_bound(name: CongestionName) -> None:
    made = controller(name, MSS)
    now = 1.0
    for _ in range(40):
        now += 0.04
        made.acknowledged(event(now, made.window, flight=made.window, round_start=True))
        assert made.window <= WINDOW_BYTES_MAX
    assert made.window == WINDOW_BYTES_MAX


@pytest.mark.parametrize("name", NAMES)
def test_a_time_out_leaves_one_packet_and_the_window_grows_again(name: CongestionName) -> None:
    made = controller(name, MSS)
    now = 1.0
    for _ in range(6):
        now += 0.04
        made.acknowledged(event(now, made.window, flight=made.window, round_start=True))
    before = made.window
    made.timeout(now, before)
    assert made.window == MSS
    for _ in range(12):
        now += 0.04
        made.acknowledged(event(now, made.window, flight=made.window, round_start=True))
    assert made.window > before / 3


@pytest.mark.parametrize("name", NAMES)
def test_a_larger_packet_never_makes_the_window_smaller_than_two(name: CongestionName) -> None:
    made = controller(name, 1_132)
    made.set_packet_size(8_932)
    assert made.window >= 8_932
