"""The last steps of a program that is replaced, which lose nothing that was sent.

Clients get their answers, links end so that their sessions can resume, and workers write their
states. The order matters: a worker hands over only when no link can send it anything any more, and
its last frame is read before the program is replaced (supervisor/handover.py).
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

import socks_tunnel
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.supervisor.binding import Bound
from socks_tunnel.supervisor.children import ExporterSlot, WorkerSlot
from socks_tunnel.supervisor.control import ControlServer
from socks_tunnel.supervisor.handover import HAND_OVER_TIMEOUT, SETTLE_SECONDS, Legacy
from socks_tunnel.supervisor.launching import Nursery
from socks_tunnel.supervisor.links import Links
from socks_tunnel.supervisor.router import Router

_log = logging.getLogger(__name__)

_bugs = BugLog()

REASON: Final = "the program is being replaced; its flows go on"
"""The reason in the log for the end of the links."""

LEAVE_TURNS: Final = 1000
"""Turns of the event loop that links have to leave their sessions. Each needs one or two."""

GOODBYE_TIMEOUT: Final = 1.0
"""Seconds that links have to close, after the workers have handed over."""

EXPORTER_TIMEOUT: Final = 2.0
"""Seconds that the exporter has to end. The next program starts another, on the same socket."""


async def depart(
    *,
    workers: Sequence[WorkerSlot],
    exporter: ExporterSlot | None,
    nursery: Nursery,
    links: Links,
    router: Router,
    control: ControlServer,
    bound: Bound,
    lock: int,
    started_at: float,
    upgrades: int,
) -> Legacy:
    """Ends what cannot go on, and returns the state for the next program.

    The caller must not send anything to the workers any more.
    """
    waiting = await asyncio.gather(*(slot.settle(SETTLE_SECONDS) for slot in workers))
    if sum(waiting):  # each worker warns of those that it really closes
        _log.debug("%d clients still wait for an answer after %.0f s", sum(waiting), SETTLE_SECONDS)
    since = time.monotonic()
    ending = spawn("suspend links", links.suspend(REASON))
    for _ in range(LEAVE_TURNS):  # a link leaves its session when its task begins
        if not links.up():
            break
        await asyncio.sleep(0)
    for link in links.up():
        _log.error("link %s does not end; its session goes on without it", link.peer.name)
        with _bugs.going_on(_log, f"link {link.peer.name} cannot be cut off"):
            link.cut_off(REASON)
    handed = await asyncio.gather(*(slot.hand_over(HAND_OVER_TIMEOUT) for slot in workers))
    # No flow can begin or end any more, so the router and the workers know the same flows.
    sessions = [session.export() for session in router.sessions.values()]
    await asyncio.gather(
        nursery.close(),
        asyncio.wait([ending], timeout=GOODBYE_TIMEOUT),
        *([] if exporter is None else [exporter.stop(EXPORTER_TIMEOUT)]),
    )
    return Legacy(
        program=socks_tunnel.__version__,
        since=since,
        started_at=started_at,
        upgrades=upgrades + 1,
        lock=lock,
        control=control.release(),
        bound=bound,
        worker_count=router.worker_count,
        workers={
            slot.index: child[0]
            for slot, child in zip(workers, handed, strict=True)
            if child is not None
        },
        links=links.export(),
        sessions=sessions,
        flows=sum(child[1] for child in handed if child is not None),
    )
