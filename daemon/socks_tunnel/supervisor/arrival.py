"""The first steps of a program that has taken the place of another one (see departure.py).

The sessions go on with the flows that the workers have kept, and the log says how long that took.
"""

import asyncio
import logging
import time
from typing import Any, Final

import socks_tunnel
from socks_tunnel.protocol.bounded import Malformed
from socks_tunnel.supervisor.handover import Legacy
from socks_tunnel.supervisor.links import Links
from socks_tunnel.supervisor.router import Router
from socks_tunnel.supervisor.routing import RoutedSession

_log = logging.getLogger(__name__)

RESUMED_STEP: Final = 0.02
"""Seconds between two looks at whether all flows go on."""

RESUMED_SECONDS: Final = 60.0
"""Seconds for which the resume of the flows is measured. Flows that take longer go on too."""


def inherit(legacy: Legacy, links: Links, router: Router) -> None:
    """Resumes the sessions of the replaced program whose peers are still configured."""
    try:
        links.inherit(legacy.links)
        router.restore(RoutedSession.restore(router, session) for session in legacy.sessions)
    except Malformed as error:
        _log.error(
            "the sessions of the previous program cannot be read: %s; their flows end", error
        )
    for session in list(router.sessions.values()):
        if session.peer not in links.peers:
            router.forget_peer(session.peer, "the peer is not configured any more")


def taken_over(legacy: Legacy) -> dict[str, Any]:
    """Logs that the program was replaced; returns the row about it for `status`."""
    seconds = time.monotonic() - legacy.since
    _log.info(
        "version %s has taken the place of %s within %.1f s, with %d flows",
        socks_tunnel.__version__,
        legacy.program,
        seconds,
        legacy.flows,
    )
    return {
        "from": legacy.program,
        "to": socks_tunnel.__version__,
        "flows": legacy.flows,
        "seconds": round(seconds, 3),
        "resumed_after": None,
    }


async def resumed(legacy: Legacy, router: Router) -> float | None:
    """Waits until all flows go on; returns the seconds since the links of the old program ended.

    None if it takes longer than :data:`RESUMED_SECONDS`.
    """
    deadline = time.monotonic() + RESUMED_SECONDS
    while router.detached or not all(link.resumed for link in router.links):
        if time.monotonic() > deadline:
            return None
        await asyncio.sleep(RESUMED_STEP)
    return round(time.monotonic() - legacy.since, 3)
