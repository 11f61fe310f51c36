"""The budget of the receive windows."""

from socks_tunnel.peer.fast.budget import WINDOWS_BYTES_MAX, WindowBudget


def test_no_more_is_promised_than_there_is() -> None:
    budget = WindowBudget(100)
    assert budget.reserve(60)
    assert not budget.reserve(41)
    assert budget.reserve(40)
    budget.release(60)
    assert budget.reserved == 40
    assert budget.reserve(60)


def test_the_default_is_256_mib() -> None:
    assert WindowBudget().limit == WINDOWS_BYTES_MAX == 256 * 1024 * 1024
