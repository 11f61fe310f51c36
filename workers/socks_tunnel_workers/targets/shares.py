"""Counts how much of something each peer uses, with a limit for each peer and one for all."""

from __future__ import annotations

from collections import Counter


class Share:
    """One unit that a peer uses. :meth:`end` gives it back."""

    __slots__ = ("_held", "_peer")

    def __init__(self, held: Counter[str], peer: str) -> None:
        self._held: Counter[str] | None = held
        self._peer = peer
        held[peer] += 1

    def end(self) -> None:
        """Gives it back; harmless if that was done before."""
        held, self._held = self._held, None
        if held is not None:
            held[self._peer] -= 1
            if not held[self._peer]:
                del held[self._peer]


class Shares:
    """The shares of all peers. The caller has to ask :meth:`full` before it takes more.

    `each` is the limit for one peer, and `total` that for all peers together.
    """

    __slots__ = ("_held", "each", "total")

    def __init__(self, *, each: int, total: int) -> None:
        self.each = each
        self.total = total
        self._held: Counter[str] = Counter()

    def __len__(self) -> int:
        return self._held.total()

    def held(self, peer: str) -> int:
        """Returns how many a peer has."""
        return self._held[peer]

    def full(self, peer: str) -> bool:
        """Returns whether a peer should not begin anything more."""
        return self._held[peer] >= self.each or self._held.total() >= self.total

    def take(self, peer: str) -> Share:
        """Returns one more share for a peer. Work that has begun may exceed the limits a little."""
        return Share(self._held, peer)
