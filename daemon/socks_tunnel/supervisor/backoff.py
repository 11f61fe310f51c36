"""Computes the delay before the next attempt. It has no clock: the caller asks for the delay."""

import random
from collections.abc import Callable
from typing import Final

WAITING_DELAY: Final = 1.0
WAITING_SHARE: Final = 1 / 30
"""While flows wait for a link, the delay is at most `WAITING_DELAY` seconds, or this share of the
time that they have waited: a path that was gone for half a minute is soon in use again."""


def hastened(delay: float, waited: float | None) -> float:
    """Returns the delay, or less if flows wait: `waited` says for how many seconds they have."""
    return delay if waited is None else min(delay, max(WAITING_DELAY, waited * WAITING_SHARE))


class Backoff:
    """Delays that double from `first` up to `longest`, both in seconds.

    With `jitter`, each delay is spread evenly between `first` and what it would be without, so that
    many who lost the same thing at the same time do not come back at the same time. `uniform` is
    :func:`random.uniform`, or a test's.
    """

    def __init__(
        self,
        first: float,
        longest: float,
        *,
        jitter: bool = False,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        if not 0 < first <= longest:
            raise ValueError("a back-off needs 0 < first <= longest")
        self._first = first
        self._longest = longest
        self._jitter = jitter
        self._uniform = uniform
        self._ceiling = first

    def next(self) -> float:
        """Returns the delay before the next attempt, in seconds; the one after it grows."""
        ceiling = self._ceiling
        self._ceiling = min(2 * ceiling, self._longest)
        if not self._jitter:
            return ceiling
        # The first delay is spread as well, because the others are chosen from the same range.
        return self._uniform(self._first, self._ceiling)

    def reset(self) -> None:
        """Starts from `first` again: the last attempt was a success."""
        self._ceiling = self._first


class Hastened:
    """Delays of a :class:`Backoff` that are shorter while flows wait, for `waited()` seconds."""

    def __init__(self, backoff: Backoff, waited: Callable[[], float | None]) -> None:
        self._backoff = backoff
        self._waited = waited

    def next(self) -> float:
        """Returns the delay before the next attempt, in seconds."""
        return hastened(self._backoff.next(), self._waited())

    def reset(self) -> None:
        """As :meth:`Backoff.reset`."""
        self._backoff.reset()
