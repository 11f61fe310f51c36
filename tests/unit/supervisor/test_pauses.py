"""What counts as a pause."""

from socks_tunnel.supervisor.pauses import PAUSE_MIN, Pauses


def test_ticks_that_come_late_on_a_busy_machine_are_no_pause() -> None:
    pauses = Pauses(100.0)
    assert pauses.tick(101.0) is None
    assert pauses.tick(101.0 + PAUSE_MIN - 0.1) is None


def test_a_pause_is_told_once_with_its_length() -> None:
    pauses = Pauses(100.0)
    assert pauses.tick(700.0) == 600.0
    assert pauses.tick(701.0) is None
    assert pauses.tick(701.0 + PAUSE_MIN) == PAUSE_MIN
