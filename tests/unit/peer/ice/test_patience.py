"""What counts as waiting, and what does not."""

import pytest

from socks_tunnel.peer.ice.patience import COUNTED_MAX, TICK, Patience


def test_a_process_that_runs_counts_all_of_the_time() -> None:
    patience = Patience(100.0)
    for number in range(1, 11):
        patience.look(100.0 + number * TICK)
    assert patience.spent == pytest.approx(10 * TICK)


def test_a_pause_of_the_process_counts_as_one_look() -> None:
    patience = Patience(100.0)
    patience.look(100.0 + TICK)
    assert patience.look(160.0) == pytest.approx(TICK + COUNTED_MAX)
    assert patience.look(160.0 + TICK) == pytest.approx(2 * TICK + COUNTED_MAX)


def test_looks_may_come_early_and_a_clock_that_stands_counts_nothing() -> None:
    patience = Patience(100.0)
    assert patience.look(100.0) == 0.0
    assert patience.look(100.01) == pytest.approx(0.01)
    assert patience.look(100.01) == pytest.approx(0.01)
