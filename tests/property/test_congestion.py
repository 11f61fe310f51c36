"""Whatever a path does, a congestion controller's window stays within its bounds."""

import math
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from socks_tunnel.peer.fast.congestion import (
    WINDOW_BYTES_MAX,
    WINDOW_PACKETS_MIN,
    Acked,
    Controller,
)
from socks_tunnel.peer.fast.controllers import controller

MSS = 1_200

ROUND_TRIPS = st.sampled_from([0.0, 0.0005, 0.004, 0.02, 0.05, 0.2, 1.0, 10.0])

SACKS = st.tuples(
    st.just("sack"),
    st.sampled_from([0.0005, 0.004, 0.02, 0.1, 1.0, 20.0]),  # seconds since the one before
    ROUND_TRIPS,
    st.floats(0, 1),  # of the window, acknowledged
    st.floats(0, 1),  # of the window, in flight
    st.sampled_from([0.0, 1.0, 1e4, 1e6, 1e9, 1e12]),  # bytes a second
    st.integers(0, 15),  # flags
)
ROUNDS = st.tuples(
    st.just("rounds"),  # alike, each with a window that is acknowledged as a whole
    st.integers(1, 12),
    ROUND_TRIPS.filter(bool),
    st.sampled_from([0.5, 1.0, 4.0]),  # of the true rate, as it is measured
    st.booleans(),
)
STEPS = st.one_of(
    SACKS,
    SACKS,
    ROUNDS,
    ROUNDS,
    st.just(("congestion",)),
    st.just(("timeout",)),
    st.just(("undo",)),
    st.tuples(st.just("size"), st.integers(1_200, 1_472)),
)


def sack(made: Controller, now: float, step: tuple[Any, ...]) -> Acked:
    _, _, rtt, acked, flight, rate, flags = step
    event = Acked()
    event.now = now
    event.rtt, event.srtt, event.min_rtt = rtt, rtt or 0.01, rtt
    event.there = rtt
    event.acked = max(1, int(acked * made.window))
    event.flight = int(flight * made.window)
    event.rate = rate
    event.in_recovery, event.paced = bool(flags & 1), bool(flags & 2)
    event.app_limited, event.round_start = bool(flags & 4), bool(flags & 8)
    return event


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("name", ["cubic", "bbr"])
def test_the_window_is_within_its_bounds_over_a_long_life(name: Any, seed: int) -> None:
    """The path changes now and then, as do what is measured of it, and what becomes of packets."""
    random = Random(seed)
    made, now = controller(name, MSS), 100.0
    timed_out = False
    for _ in range(200):
        before = made.window
        happens = random.random()
        if happens < 0.03:
            made.congestion(now, made.window)
        elif happens < 0.04:
            made.timeout(now, made.window)
            timed_out = True
        elif happens < 0.06:
            made.undo()
            assert made.window >= before
        else:
            rtt = random.choice([0.004, 0.01, 0.02, 0.05, 0.2, 1.0])
            measured = random.choice([0.5, 1.0, 2.0, 20.0])  # of the true rate
            for _ in range(random.randint(1, 20)):
                now += rtt
                step = ("sack", rtt, rtt, 1.0, 1.0, measured * made.window / rtt)
                flags = 8 + random.choice([0, 0, 0, 1, 4])
                made.acknowledged(sack(made, now, (*step, flags)))
                assert made.window <= WINDOW_BYTES_MAX
        assert made.window <= WINDOW_BYTES_MAX
        timed_out = timed_out and made.window < WINDOW_PACKETS_MIN * MSS
        assert made.window >= (1 if timed_out else WINDOW_PACKETS_MIN) * MSS


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(["cubic", "bbr"]), st.lists(STEPS, max_size=80))
def test_the_window_is_within_its_bounds(name: Any, steps: list[tuple[Any, ...]]) -> None:
    made, now, size = controller(name, MSS), 100.0, MSS
    timed_out = False
    for step in steps:
        before = made.window
        match step[0]:
            case "sack":
                now += step[1]
                made.acknowledged(sack(made, now, step))
            case "rounds":
                _, count, rtt, factor, in_recovery = step
                for _ in range(count):
                    now += rtt
                    rate, flags = factor * made.window / rtt, 8 + in_recovery
                    made.acknowledged(sack(made, now, ("sack", rtt, rtt, 1.0, 1.0, rate, flags)))
                    assert made.window <= WINDOW_BYTES_MAX
            case "congestion":
                made.congestion(now, made.window)
                assert made.window <= max(before, WINDOW_PACKETS_MIN * size)
            case "timeout":
                made.timeout(now, made.window)
                timed_out = True
                assert made.window == size
            case "undo":
                made.undo()
                assert made.window >= before, "nothing is taken away by it"
            case "size":
                size = step[1]
                made.set_packet_size(size)
        assert made.window <= WINDOW_BYTES_MAX
        # Bounds in packets are those of the size at the time: a packet grows by a fifth at most.
        least = 1_200 if timed_out else WINDOW_PACKETS_MIN * 1_200
        assert made.window >= least
        timed_out = timed_out and made.window < WINDOW_PACKETS_MIN * size
        assert math.isfinite(made.pacing_rate)
        assert made.pacing_rate >= 0
