"""Computes priorities of candidates and pairs, and chooses the pairs to check. Pure functions."""

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import Final, Literal, TypeVar

CandidateType = Literal["host", "prflx", "srflx", "relay"]

TYPE_PREFERENCES: Final[dict[CandidateType, int]] = {
    "host": 126,
    "prflx": 110,
    "srflx": 100,
    "relay": 0,
}
"""RFC 8445 section 5.1.2.2."""

LOCAL_PREFERENCE_MAX: Final = 65_535

PAIRS_MAX: Final = 100
"""Pairs that are checked: the recommended limit of RFC 8445 section 6.1.2.5."""

PAIRS_LEARNED_MAX: Final = 100
"""Further pairs that checks of the peer may add, from addresses that it did not name."""

COMPONENT: Final = 1
"""The only component, because everything that a link sends goes over one path."""

_T = TypeVar("_T")


def candidate_priority(kind: CandidateType, local_preference: int) -> int:
    """Returns the priority of a candidate.

    RFC 8445 section 5.1.2.1: `priority = (2^24)*(type preference) + (2^8)*(local preference) +
    (2^0)*(256 - component ID)`.
    """
    return (TYPE_PREFERENCES[kind] << 24) + (local_preference << 8) + 256 - COMPONENT


def pair_priority(controlling: int, controlled: int) -> int:
    """Returns the priority of a pair, from those of the two sides' candidates.

    RFC 8445 section 6.1.2.3: `pair priority = 2^32*MIN(G,D) + 2*MAX(G,D) + (G>D?1:0)`.
    """
    low, high = min(controlling, controlled), max(controlling, controlled)
    return (low << 32) + 2 * high + (controlling > controlled)


def prune(
    pairs: Iterable[_T],
    priority: Callable[[_T], int],
    kind: Callable[[_T], Hashable],
    limit: int = PAIRS_MAX,
) -> list[_T]:
    """Returns at most `limit` pairs, the highest priority first.

    By RFC 8445 section 6.1.2.5, the pairs of lowest priority are discarded. Taken literally, two
    hosts with many addresses would discard all pairs with a relay, which may be the only ones that
    work. So each kind of pair gets the same share of the list, and the others get what one kind
    does not use.
    """
    kinds: dict[Hashable, list[_T]] = defaultdict(list)
    for pair in sorted(pairs, key=priority, reverse=True):
        kinds[kind(pair)].append(pair)
    kept: list[_T] = []
    for number, group in enumerate(sorted(kinds.values(), key=len)):
        share = (limit - len(kept)) // (len(kinds) - number)
        kept += group[:share]
    return sorted(kept, key=priority, reverse=True)
