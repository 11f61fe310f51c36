"""How busy an endpoint is, as it says through a rendezvous service. Sans-IO.

An endpoint tells the service, and the service tells the gateways that want to know, with frames of
:mod:`socks_tunnel.protocol.rendezvous`::

    load        client   "flows": int, "links": int, "version": str
    presence    service  "loads": [[bin 32, int, int, str]]       key, flows, links, version

The limit `load` of the welcome says how many seconds lie between two frames of a client; without it
the service takes none.
"""

import random
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from socks_tunnel.protocol import bounded

PERIOD: Final = 5
"""Seconds between two times that an endpoint says its load."""

CHANGE_MIN: Final = 4
CHANGE_SHARE: Final = 0.1
"""What has changed by so many flows or links, and by such a part of them, is said again."""

LOADS_PER_FRAME: Final = 16
"""Most loads in one frame."""

VERSION_MAX: Final = 32
"""Longest version in bytes."""

COUNT_MAX: Final = (1 << 32) - 1


@dataclass(frozen=True, slots=True)
class Load:
    """What an endpoint has at the moment. `version` is that of its program."""

    flows: int
    links: int
    version: str


KeyLoad: TypeAlias = tuple[bytes, Load]
"""A key, and the load of the endpoint that has it."""


def decode_load(fields: Mapping[str, Any]) -> Load:
    """Returns the load in a frame with these fields. Raises :class:`bounded.Malformed`."""
    version = bounded.text(fields, "version")
    if len(version.encode()) > VERSION_MAX:
        raise bounded.unusable(fields, "version")
    return Load(
        flows=bounded.integer(fields, "flows", 0, COUNT_MAX),
        links=bounded.integer(fields, "links", 0, COUNT_MAX),
        version=version,
    )


def encode_loads(loads: tuple[KeyLoad, ...]) -> list[list[Any]]:
    """Returns the value of `loads` in a frame."""
    return [[key, load.flows, load.links, load.version] for key, load in loads]


def decode_loads(fields: Mapping[str, Any], key_size: int) -> tuple[KeyLoad, ...]:
    """Returns the loads in a frame with these fields. Raises :class:`bounded.Malformed`."""
    rows = fields.get("loads", [])
    if not isinstance(rows, list) or len(rows) > LOADS_PER_FRAME:
        raise bounded.unusable(fields, "loads")
    loads = []
    for row in rows:
        if not isinstance(row, list) or len(row) != len(_COLUMNS):
            raise bounded.unusable(fields, "loads")
        named = dict(zip(_COLUMNS, row, strict=True))
        loads.append((bounded.binary(named, "key", key_size), decode_load(named)))
    return tuple(loads)


_COLUMNS: Final = ("key", "flows", "links", "version")


class Telling:
    """Says when a load is worth telling: the first one, and those that differ from the last."""

    def __init__(self) -> None:
        self._told: Load | None = None

    def is_news(self, load: Load) -> bool:
        """Returns whether a load has to be told, and takes it as told then."""
        told = self._told
        news = (
            told is None
            or told.version != load.version
            or _differs(told.flows, load.flows)
            or _differs(told.links, load.links)
        )
        if news:
            self._told = load
        return news


def _differs(before: int, now: int) -> bool:
    if not now or not before:  # that there is nothing, or something, is news
        return now != before
    return abs(now - before) >= max(CHANGE_MIN, CHANGE_SHARE * before)


Pause: TypeAlias = Callable[[float], Awaitable[None]]


async def tell_forever(
    current: Callable[[], Load],
    period: float,
    send: Callable[[Load], Awaitable[None]],
    pause: Pause,
) -> None:
    """Sends what is news, once in each period. Ends with what `send` raises."""
    telling = Telling()
    while True:
        load = current()
        if telling.is_news(load):
            await send(load)
        await pause(period * random.uniform(1.0, 1.2))  # noqa: S311 - no secret
