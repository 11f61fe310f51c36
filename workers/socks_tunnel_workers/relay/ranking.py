"""The flows with the highest rate, total or age, for `socks-tunnel top`."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Final

from socks_tunnel_workers.relay.session import Flow

FLOWS_PER_TURN: Final = 500
"""Flows looked at in one turn of the event loop, so that bytes can move in between."""


def rank(
    loop: asyncio.AbstractEventLoop,
    flows: list[Flow],
    limit: int,
    by: str,
    done: Callable[[Iterable[Flow]], None],
) -> None:
    """Calls `done` with the `limit` flows that have most, in falling order. Empties `flows`.

    `by` is `rate` (bytes since the flows were last ranked by rate, for any asker), `total` (bytes
    in both directions) or `age`. Some flows are looked at now, the rest in later turns of the loop.
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
