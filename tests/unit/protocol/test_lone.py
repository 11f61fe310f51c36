"""Which messages come alone."""

from socks_tunnel.protocol.lone import LONE_SECONDS, TOGETHER_TURNS, Lone


def test_messages_that_keep_their_distance_come_alone() -> None:
    lone = Lone()
    assert [lone.comes(2 * number * LONE_SECONDS) for number in range(20)] == [True] * 20


def test_after_two_that_came_together_some_wait_for_others() -> None:
    lone = Lone()
    assert lone.comes(1.0)
    assert not lone.comes(1.0 + LONE_SECONDS / 2)
    later = [lone.comes(2.0 + number) for number in range(TOGETHER_TURNS + 2)]
    assert later == [False] * TOGETHER_TURNS + [True, True]


def test_bursts_that_go_on_never_come_alone() -> None:
    lone = Lone()
    assert lone.comes(1.0)
    for burst in range(1, 50):
        for number in range(2):
            assert not lone.comes(1.0 + burst / 100 + number * LONE_SECONDS / 2) or (
                burst == 1 and number == 0
            )


def test_messages_at_the_distance_come_alone() -> None:
    lone = Lone()
    assert lone.comes(0.0)
    assert lone.comes(LONE_SECONDS)
