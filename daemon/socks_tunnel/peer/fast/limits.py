"""How much whoever fills the sender's queue should queue, and in messages of which size."""

from typing import Final

QUEUE_TIME_MIN: Final = 0.005
"""Seconds of the measured rate that may wait at least: the owner needs a turn to queue more."""
QUEUE_BYTES_MIN: Final = 65_536
QUEUE_BYTES_MAX: Final = 16_777_216
"""Bounds in bytes of what may wait in the queue above the packets; see :func:`queue_limit`."""

HOLD_TIME: Final = 0.005
"""Seconds that one message may occupy the wire where messages cannot be interleaved."""
MESSAGE_LIMIT_MIN: Final = 2_048
MESSAGE_LIMIT_MAX: Final = 65_536
"""Bounds in bytes of the message size that :func:`message_limit` returns."""


def queue_limit(window: int, rate: float, minimum: float) -> int:
    """Returns how many bytes should wait at most: about one bandwidth-delay product.

    `window` is the congestion window in bytes, `rate` the measured one in bytes a second (0 if
    unknown), `minimum` the round trip in seconds without the path's queues. With less, the link may
    run dry before the owner fills it again; with more, messages wait for nothing.
    """
    limit = window
    if rate:
        limit = min(limit, int(rate * max(minimum, QUEUE_TIME_MIN)))
    return min(max(limit, QUEUE_BYTES_MIN), QUEUE_BYTES_MAX)


def message_limit(rate: float) -> int:
    """Returns the size of the largest message that occupies the wire for HOLD_TIME at most.

    `rate` is in bytes a second; 0 if it is unknown, or if messages are interleaved.
    """
    if not rate:
        return MESSAGE_LIMIT_MAX
    return min(max(int(rate * HOLD_TIME), MESSAGE_LIMIT_MIN), MESSAGE_LIMIT_MAX)
