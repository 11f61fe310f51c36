"""How long to wait before the next attempt. No clock: whoever waits asks for the delay."""

import random
from collections.abc import Callable


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
        # The first delay, too, is spread: it is then the one that all those others choose from.
        return self._uniform(self._first, self._ceiling)

    def reset(self) -> None:
        """Starts from `first` again: the last attempt was a success."""
        self._ceiling = self._first
