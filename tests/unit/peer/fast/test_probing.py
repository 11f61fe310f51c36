"""When silence is broken."""

import pytest

from socks_tunnel.peer.fast.probing import (
    DOUBLINGS_MAX,
    PEER_SACK_DELAY,
    PROBE_DELAY_MIN,
    TIME_OUT_SHARE,
    Probing,
)
from socks_tunnel.peer.fast.rtt import RTO_INITIAL, RoundTrip


def trip(rtt: float) -> RoundTrip:
    made = RoundTrip()
    for at in range(50):
        made.measured(rtt, float(at))
    return made


@pytest.mark.parametrize(
    ("rtt", "delay"), [(0.0005, PROBE_DELAY_MIN), (0.02, 0.04), (0.5, TIME_OUT_SHARE * 0.7)]
)
def test_two_round_trips_but_less_than_the_time_out(rtt: float, delay: float) -> None:
    probing, path = Probing(), trip(rtt)
    probing.arm(10.0, path, alone=False)
    assert probing.at == pytest.approx(10.0 + delay, rel=1e-3)
    assert probing.at < 10.0 + path.rto


def test_a_lone_chunk_is_given_the_time_of_a_delayed_sack() -> None:
    probing = Probing()
    probing.arm(10.0, trip(0.02), alone=True)
    assert probing.at == pytest.approx(10.04 + PEER_SACK_DELAY)


def test_nothing_is_known_before_the_first_round_trip() -> None:
    probing = Probing()
    probing.arm(10.0, RoundTrip(), alone=False)
    assert probing.at == 10.0 + TIME_OUT_SHARE * RTO_INITIAL


def test_each_probe_without_an_answer_doubles_the_wait() -> None:
    probing, path = Probing(), trip(0.02)
    probing.arm(10.0, path, alone=False)
    waits = []
    for _ in range(4):
        now = probing.at
        probing.sent(now, path)
        waits.append(probing.at - now)
    assert waits == pytest.approx([0.08, 0.16, 0.32, 0.64])
    probing.answered()
    assert (probing.at, probing.count) == (0.0, 0)
    probing.arm(20.0, path, alone=False)
    assert probing.at == pytest.approx(20.04)


def test_the_doubling_ends() -> None:
    probing, path = Probing(), trip(0.02)
    probing.count = 10_000
    probing.arm(0.0, path, alone=False)
    assert probing.at == pytest.approx(0.04 * 2**DOUBLINGS_MAX)
