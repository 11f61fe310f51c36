"""How much of something each peer uses, with a limit for each and one for all of them."""

from __future__ import annotations

from collections import Counter


class Share:
    """One of what a peer uses. Ending it gives it back, once."""

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
    """All peers' shares. The limits are the caller's to look at before it takes more."""

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
        """Whether a peer should begin nothing more."""
        return self._held[peer] >= self.each or self._held.total() >= self.total

    def take(self, peer: str) -> Share:
        """Returns one more for a peer. What was begun may go a little beyond the limits."""
        return Share(self._held, peer)
