"""Which round trip the windows of flows go by."""

import pytest

from socks_tunnel.supervisor.round_trip import KEPT, ShortestRoundTrip


def test_none_was_measured_yet() -> None:
    assert ShortestRoundTrip().of(None, 1.0) == 0.0


def test_the_queue_of_a_transfer_does_not_count() -> None:
    shortest = ShortestRoundTrip()
    assert shortest.of(0.02, 1.0) == 0.02
    assert shortest.of(0.3, 5.0) == 0.02
    assert shortest.of(0.01, 6.0) == 0.01
    assert shortest.of(0.3, 6.0 + KEPT) == 0.01


@pytest.mark.parametrize("step", [0.1, 5.0, KEPT, 3 * KEPT])
def test_a_longer_path_is_noticed_within_two_periods(step: float) -> None:
    shortest = ShortestRoundTrip()
    shortest.of(0.001, 1.0)
    now = 1.0
    while now < 1.0 + 2 * (KEPT + step):
        now += step
        result = shortest.of(0.1, now)
    assert result == 0.1


def test_a_shorter_path_is_noticed_at_once() -> None:
    shortest = ShortestRoundTrip()
    shortest.of(0.1, 1.0)
    assert shortest.of(0.001, 2.0) == 0.001
