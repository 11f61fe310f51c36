"""What whoever fills the queue is told."""

import pytest

from socks_tunnel.peer.fast.limits import (
    MESSAGE_LIMIT_MAX,
    MESSAGE_LIMIT_MIN,
    QUEUE_BYTES_MAX,
    QUEUE_BYTES_MIN,
    QUEUE_TIME_MIN,
    message_limit,
    queue_limit,
)


@pytest.mark.parametrize(
    ("window", "rate", "minimum", "limit"),
    [
        (1_000, 0.0, 0.0, QUEUE_BYTES_MIN),
        (500_000, 0.0, 0.05, 500_000),
        (1 << 30, 1_250_000.0, 0.05, QUEUE_BYTES_MIN),
        (1 << 30, 12_500_000.0, 0.05, 625_000),
        (200_000, 12_500_000.0, 0.05, 200_000),
        (1 << 30, 125_000_000.0, 0.0001, int(125_000_000 * QUEUE_TIME_MIN)),
        (1 << 30, 1e12, 0.05, QUEUE_BYTES_MAX),
    ],
)
def test_the_queue_holds_what_the_path_holds(
    window: int, rate: float, minimum: float, limit: int
) -> None:
    assert queue_limit(window, rate, minimum) == limit


@pytest.mark.parametrize(
    ("rate", "limit"),
    [
        (0.0, MESSAGE_LIMIT_MAX),
        (125_000.0, MESSAGE_LIMIT_MIN),
        (1_250_000.0, 6_250),
        (1e9, MESSAGE_LIMIT_MAX),
    ],
)
def test_a_message_holds_the_wire_for_five_milliseconds(rate: float, limit: int) -> None:
    assert message_limit(rate) == limit
