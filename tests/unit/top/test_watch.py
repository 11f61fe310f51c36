"""How often `socks-tunnel top` asks; the rest of it is tested in a terminal."""

import pytest

from socks_tunnel.top.watch import LOAD_MAX, PAUSE_MAX, PERIOD, pause


@pytest.mark.parametrize("took", [0.0, 0.01, 0.05, 0.1])
def test_swift_answers_come_once_in_a_period(took: float) -> None:
    assert took + pause(took) == pytest.approx(PERIOD)


@pytest.mark.parametrize("took", [0.11, 0.3, 0.5])
def test_slow_answers_take_no_more_than_their_share(took: float) -> None:
    assert took / (took + pause(took)) == pytest.approx(LOAD_MAX)


def test_the_pause_is_bounded() -> None:
    assert pause(15.0) == PAUSE_MAX
