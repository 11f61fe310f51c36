"""Back-off: doubling, bounds, reset, and where jitter may fall."""

import pytest

from socks_tunnel.supervisor.backoff import Backoff


def test_delays_double_up_to_the_longest_and_start_again_after_reset() -> None:
    backoff = Backoff(0.2, 10.0)
    assert [backoff.next() for _ in range(8)] == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0]
    backoff.reset()
    assert backoff.next() == 0.2


def test_full_jitter_spreads_each_delay_between_the_first_and_a_doubling_ceiling() -> None:
    asked: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        asked.append((low, high))
        return high

    backoff = Backoff(0.5, 30.0, jitter=True, uniform=uniform)
    assert [backoff.next() for _ in range(7)] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert {low for low, _ in asked} == {0.5}


def test_jitter_stays_within_its_bounds() -> None:
    backoff = Backoff(0.5, 30.0, jitter=True)
    delays = [backoff.next() for _ in range(500)]
    assert min(delays) >= 0.5
    assert max(delays) <= 30.0
    assert len(set(delays)) > 400


@pytest.mark.parametrize(("first", "longest"), [(0, 1), (-1, 1), (2, 1)])
def test_senseless_bounds_are_refused(first: float, longest: float) -> None:
    with pytest.raises(ValueError, match="back-off"):
        Backoff(first, longest)
