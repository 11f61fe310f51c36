"""The first flows by something, for `socks-tunnel top`: a look at all of them takes some time."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final

from socks_tunnel_workers.relay.session import Flow

FLOWS_PER_TURN: Final = 500
"""Flows looked at in one go; then others' bytes move before the next ones."""


def rank(
    loop: asyncio.AbstractEventLoop,
    flows: list[Flow],
    limit: int,
    by: str,
    done: Callable[[Iterable[Flow]], None],
) -> None:
    """Calls `done` with the first `limit` of `flows`, those with the most first; takes the list.

    `by` is `rate` (bytes since flows were last compared by that, whoever asked), `total` (bytes)
    or `age`. Some flows are looked at now, the rest in later turns of the loop.
    """
    key = _KEYS[by]
    best: list[tuple[float, Flow]] = []

    def turn() -> None:
        nonlocal best
        some = flows[-FLOWS_PER_TURN:]
        del flows[-FLOWS_PER_TURN:]
        best += [(key(flow), flow) for flow in some]
        best = heapq.nlargest(limit, best, key=itemgetter(0))
        if flows:
            loop.call_soon(turn)
        else:
            done([flow for _, flow in best if not flow.ended])

    turn()


def _recent(flow: Flow) -> float:
    total = flow.up + flow.down
    recent, flow.ranked = total - flow.ranked, total
    return recent


def _total(flow: Flow) -> float:
    return flow.up + flow.down


def _age(flow: Flow) -> float:
    return -flow.started


_KEYS: Final[dict[str, Callable[[Flow], float]]] = {"rate": _recent, "total": _total, "age": _age}
