"""What an instance says of itself: `status`, `connections`, the status line, the report in the log.

Workers are asked for what only they know. One that does not answer in time is shown without.
"""

import asyncio
import logging
import os
import resource
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sized
from itertools import islice
from typing import Any, Final, Protocol, TypeVar

import socks_tunnel
from socks_tunnel.config.for_workers import route_settings
from socks_tunnel.config.settings import Config, listener_text
from socks_tunnel.supervisor.children import WorkerSlot
from socks_tunnel.supervisor.links import Links
from socks_tunnel.supervisor.listeners import Address
from socks_tunnel.supervisor.peerlink import waiting_times

_T = TypeVar("_T")

_log = logging.getLogger(__name__)

ANSWER_TIMEOUT: Final = 2.0
"""Seconds that a worker has to answer a question about itself."""

PEERS_IN_LINE: Final = 3
"""Up to so many peers are named in the status line; more are only counted."""

TURN: Final = 100
"""Rows that are made before the event loop may do something else: about a millisecond."""

RANKINGS: Final = ("rate", "total", "age")
"""What the first flows can be asked for by: bytes per second, bytes, seconds."""

DETAILS_MAX: Final = 10
"""Peers of which a summary says why there is no link."""

_OF_WORKER: Final = ("flows_tcp", "flows_udp", "bytes_up", "bytes_down", "buffered")


class Reported(Protocol):
    """What is told of an instance."""

    config: Config
    links: Links
    workers: list[WorkerSlot]
    started_at: float
    upgrades: int
    upgrade: dict[str, Any] | None

    @property
    def state(self) -> str:
        """`starting`, `ready`, `draining` or `leaving`."""

    @property
    def addresses(self) -> list[Address]:
        """Where clients are served."""

    @property
    def metrics_address(self) -> Address | None:
        """Where the exporter serves."""


class Summarized(Reported, Protocol):
    """What is told of an instance in short."""

    def why_not_ready(self) -> str | None:
        """Returns why no new flow can be served."""


async def status(instance: Summarized) -> dict[str, Any]:
    """Returns the answer to `status`."""
    whole, held = await brief(instance)
    return {**whole, "links": [row async for row in in_turns(instance.links.rows(held))]}


async def brief(instance: Summarized) -> tuple[dict[str, Any], Mapping[str, int]]:
    """Returns the answer to `status` but for the links, of which there may be thousands.

    The second result is how many bytes the flows hold that wait for a link, by their peer.
    `reason` is in the answer only while an instance that is ready can serve no new flow.
    """
    reason = instance.why_not_ready()
    slots = list(instance.workers)  # one that retires may end meanwhile
    answers = await asyncio.gather(*(_ask(slot, "status") for slot in slots))
    workers = []
    held: Counter[str] = Counter()
    for slot, answer in zip(slots, answers, strict=True):
        known = answer[0] if answer and isinstance(answer[0], dict) else {}
        held.update(known.get("waiting_held", {}))
        workers.append(
            {
                "index": slot.index,
                "pid": slot.pid,
                "state": slot.state if slot.responsive else "hanging",
                "retiring": slot.retiring,
                "restarts": slot.restarts,
                **{key: known.get(key, 0) for key in _OF_WORKER},
            }
        )
    whole = {
        "instance": instance.config.instance,
        "role": instance.config.role,
        "version": socks_tunnel.__version__,
        "pid": os.getpid(),
        "uptime": round(time.monotonic() - instance.started_at, 1),
        "state": instance.state,
        **({"reason": reason} if reason not in {None, instance.state} else {}),
        "upgrades": instance.upgrades,
        "upgrade": instance.upgrade,
        "listen": _listening(instance),
        "metrics": None if instance.metrics_address is None else str(instance.metrics_address),
        **({"routes": routes} if (routes := instance.links.router.chooser.rows()) else {}),
        "workers": workers,
        "counters": {
            **{key: sum(worker[key] for worker in workers) for key in _OF_WORKER},
            "restarts": sum(worker["restarts"] for worker in workers),
        },
    }
    return whole, held


def summary(instance: Summarized) -> dict[str, Any]:
    """Returns the answer to `summary`: what scripts wait for, without asking any worker.

    `reason` says why no new flow can be served, None if one can.
    """
    links = instance.links
    return {
        "instance": instance.config.instance,
        "role": instance.config.role,
        "pid": os.getpid(),
        "state": instance.state,
        "listen": _listening(instance),
        "protocols": list(instance.config.socks.protocols),
        "links_up": len(links.up()),
        "peers": len(links.peers),
        "flows": links.router.flows,
        "reason": instance.why_not_ready(),
        "details": list(islice(_details(links), DETAILS_MAX)),
    }


def _details(links: Links) -> Iterator[str]:
    """Yields a sentence for each peer that is known not to be reached."""
    for row in links.rows():
        if row["state"] != "up" and row.get("detail"):
            yield f"{row['peer']}: {row['detail']}"


def diagnosis(instance: Summarized, errors: list[dict[str, object]]) -> dict[str, Any]:
    """Returns the answer to `diagnosis`: what an operator needs who looks for a fault."""
    rows = []
    for link in instance.links.links[:DETAILS_MAX]:
        transport = link.link.transport
        ours, theirs = transport.candidates
        stage = "" if link.attached is not None else transport.stage
        rows.append({**link.status(), "ours": ours, "theirs": theirs, "stage": stage})
    return {
        **summary(instance),
        "version": socks_tunnel.__version__,
        "config": str(instance.config.source),
        "uptime": round(time.monotonic() - instance.started_at, 1),
        "links": rows,
        "errors": errors,
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    }


def routes(instance: Reported) -> list[dict[str, Any]]:
    """Returns what a browser is told: listeners, protocols, hosts and ports of each route."""
    config = instance.config
    if config.role != "gateway":
        return []
    return [
        {
            "listen": _listening(instance),
            "protocols": list(config.socks.protocols),
            "routes": [[route.hosts, route.ports] for route in route_settings(config)],
        }
    ]


async def kill(instance: Reported, peer: str, conn_id: int) -> dict[str, Any] | None:
    """Ends a flow at once; returns its row, or None if there is no such flow."""
    answers = await asyncio.gather(
        *(
            asyncio.wait_for(slot.kill_flow(peer, conn_id), ANSWER_TIMEOUT)
            for slot in instance.workers
            if slot.running
        ),
        return_exceptions=True,
    )
    for answer in answers:
        if isinstance(answer, Exception) and not isinstance(answer, ConnectionError | TimeoutError):
            raise answer
    rows = [row for answer in answers if isinstance(answer, list) for row in answer]
    return rows[0] if rows else None


def _listening(instance: Reported) -> list[str]:
    """Returns where SOCKS5 clients are served, or where an endpoint takes offers."""
    signaling = instance.config.signaling
    if signaling is None or signaling.listen is None:
        return [listener_text(address) for address in instance.addresses]
    return [listener_text(signaling.listen)]


async def connections(instance: Reported, **options: Any) -> list[dict[str, Any]]:
    """Returns the answer to `connections`: a row for each flow.

    With `limit` and `by`: for so many of each worker, those that have the most of it. `linked` is
    false for a flow that waits for a link; it has waited since `waiting_since`, and is ended after
    `waiting_left` more seconds.
    """
    slots = list(instance.workers)  # as above
    answers = await asyncio.gather(*(_ask(slot, "connections", **options) for slot in slots))
    found = instance.links.router.waiting(time.monotonic())
    waiting = {peer: waiting_times(each) for peer, each in found.items()}
    linked = waiting_times(None)
    rows = (
        {
            **row,
            "worker": slot.index,
            "linked": row.get("peer", "") not in waiting,
            **waiting.get(row.get("peer", ""), linked),
        }
        for slot, answer in zip(slots, answers, strict=True)
        for row in answer
        if isinstance(row, dict)
    )
    return [row async for row in in_turns(rows)]


async def in_turns(rows: Iterable[_T]) -> AsyncIterator[_T]:
    """Yields the rows, and lets the event loop go on after each :data:`TURN`."""
    for number, row in enumerate(rows, 1):
        yield row
        if number % TURN == 0:
            await asyncio.sleep(0)


class Counted(Protocol):
    """What the status line needs of the links."""

    @property
    def peers(self) -> Sized:
        """The configured peers."""

    def up(self) -> Sized:
        """The links that are up."""

    def status(self) -> list[dict[str, Any]]:
        """A row for each."""


def status_line(role: str, links: Counted, flows: int, workers: int) -> str:
    """Returns the sentence that the service manager shows: role, links, flows, workers."""
    peers = len(links.peers)
    if peers <= PEERS_IN_LINE:
        parts = [_link_words(link) for link in links.status()]
    else:  # counted: thousands of rows would hold up the packets
        parts = [f"{len(links.up())} of {peers} links up"]
    parts.append(_count(flows, "flow"))
    parts.append(_count(workers, "worker"))
    return f"{role}: {', '.join(parts)}"


async def log_report(instance: Summarized) -> None:
    """Writes the whole state into the log, a line for each thing."""
    state = await status(instance)
    counters = state["counters"]
    _log.info(
        "report: %s %s, version %s, %s, up for %.0f s; %d TCP flows, %d UDP associations, "
        "%d bytes up, %d bytes down, %d worker restarts",
        state["role"],
        state["instance"],
        state["version"],
        state["state"],
        state["uptime"],
        counters["flows_tcp"],
        counters["flows_udp"],
        counters["bytes_up"],
        counters["bytes_down"],
        counters["restarts"],
    )
    for link in state["links"]:
        _log.info("report: link %s is %s", link["peer"], link["state"], extra={"fields": link})
    for worker in state["workers"]:
        _log.info(
            "report: worker %d is %s", worker["index"], worker["state"], extra={"fields": worker}
        )


async def _ask(slot: WorkerSlot, what: str, **options: Any) -> list[Any]:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            return await slot.ask(what, **options)
    except (TimeoutError, ConnectionError) as error:
        _log.debug("%s gives no %s: %s", slot.name, what, error)
        return []


def _link_words(link: dict[str, Any]) -> str:
    words = f"link {link['peer']} {link['state']}"
    if link["state"] == "up" and link["rtt_ms"] is not None:
        rtt: float = link["rtt_ms"]
        words += f" (rtt {rtt:.{0 if rtt >= 10 else 1}f} ms)"
    return words


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
