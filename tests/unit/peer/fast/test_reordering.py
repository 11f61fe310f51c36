"""Patience with packets that may only be late."""

from socks_tunnel.peer.fast.reordering import MULTIPLIER_MAX, REORDER_PERSIST, Reordering

RTT = 0.04


def patience(made: Reordering, *, certain: bool = False) -> float:
    return made.patience(RTT, 2 * RTT, certain=certain)


def test_a_path_that_never_reordered_is_given_none_when_the_loss_is_certain() -> None:
    made = Reordering()
    assert patience(made, certain=True) == 0
    assert patience(made) == RTT / 4
    made.seen = True
    assert patience(made, certain=True) == RTT / 4


def test_patience_grows_once_a_round_trip_up_to_a_round_trip() -> None:
    made = Reordering()
    for _ in range(10):
        made.in_vain(5, 100)
    assert made.multiplier == 2
    made.in_vain(100, 200)
    assert patience(made) == 3 * RTT / 4
    for order in range(200, 20_000, 100):
        made.in_vain(order, order + 100)
    assert made.multiplier == MULTIPLIER_MAX
    assert patience(made) == 2 * RTT


def test_patience_comes_down_after_enough_recoveries() -> None:
    made = Reordering()
    made.in_vain(0, 1)
    for _ in range(REORDER_PERSIST - 1):
        made.recovered()
    assert made.multiplier == 2
    made.recovered()
    assert made.multiplier == 1
