"""The clock of signalling: this host's own, or that of a rendezvous service that is trusted for it.

Offers and answers are good for a minute. A host whose clock is wrong by more can reach nobody, and
nobody reaches it. A service sends its time at the start of a connection. With `rendezvous_clock =
true` in the configuration, envelopes are made and judged by that time.
"""

import time
from collections.abc import Callable


class SignalingClock:
    """Unix time in seconds. `own` is this host's clock."""

    def __init__(self, *, trusts_service: bool, own: Callable[[], float] = time.time) -> None:
        self.trusts_service = trusts_service
        self._own = own
        self._ahead = 0.0

    def now(self) -> float:
        """Returns the time with which envelopes are made and judged."""
        return self._own() + self._ahead

    def at_start(self) -> float | None:
        """Returns the time before any service was heard; None if it cannot be relied on."""
        return None if self.trusts_service else self._own()

    def service_said(self, skew: int) -> None:
        """Takes the time of a service, which is `skew` seconds ahead of this host's clock."""
        if self.trusts_service:
            self._ahead = float(skew)
