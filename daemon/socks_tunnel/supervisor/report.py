"""Reports of an instance: `status`, `connections`, the status line, the report in the log.

Workers are asked for what only they know. If one does not answer in time, its figures are missing.
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
"""Most peers that the status line names. If there are more, they are only counted."""

TURN: Final = 100
"""Rows that are made in one turn of the event loop: about a millisecond."""

RANKINGS: Final = ("rate", "total", "age")
"""The orders in which the first flows can be asked for: bytes since the last question, bytes in
all, seconds."""

DETAILS_MAX: Final = 10
"""Peers for which a summary says why there is no link."""

_OF_WORKER: Final = ("flows_tcp", "flows_udp", "bytes_up", "bytes_down", "buffered")


class Reported(Protocol):
    """An instance, as far as reports need it."""

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
        """The addresses of the proxy."""

    @property
    def metrics_address(self) -> Address | None:
        """The address of the exporter; None if there is none."""


class Summarized(Reported, Protocol):
    """An instance, as far as a summary needs it."""

    def why_not_ready(self) -> str | None:
        """Returns why no new flow can be served."""


async def status(instance: Summarized) -> dict[str, Any]:
    """Returns the answer to `status`."""
    whole, held = await brief(instance)
    return {**whole, "links": [row async for row in in_turns(instance.links.rows(held))]}


async def brief(instance: Summarized) -> tuple[dict[str, Any], Mapping[str, int]]:
    """Returns the answer to `status` without the links, of which there may be thousands.

    The second result is the number of bytes that flows without a link hold, by their peer. `reason`
    is in the answer only if an instance that is ready can serve no new flow.
    """
    reason = instance.why_not_ready()
    slots = list(instance.workers)  # a retiring worker may leave the list meanwhile
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
    """Returns the answer to `summary`: what scripts wait for. It asks no worker.

    `reason` says why no new flow can be served; it is None if one can.
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
    """Yields a sentence for each peer without a link of which the reason is known."""
    for row in links.rows():
        if row["state"] != "up" and row.get("detail"):
            yield f"{row['peer']}: {row['detail']}"


def diagnosis(instance: Summarized, errors: list[dict[str, object]]) -> dict[str, Any]:
    """Returns the answer to `diagnosis`: what an operator needs to find a fault."""
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
    """Returns the data for a PAC file: listeners, protocols, hosts and ports of each route."""
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
    """Returns the addresses of a gateway's proxy, or the one at which an endpoint takes offers."""
    signaling = instance.config.signaling
    if signaling is None or signaling.listen is None:
        return [listener_text(address) for address in instance.addresses]
    return [listener_text(signaling.listen)]


async def connections(instance: Reported, **options: Any) -> list[dict[str, Any]]:
    """Returns the answer to `connections`: a row for each flow.

    With `limit` and `by`, it has only `limit` flows of each worker: the first ones in the order
    `by` (:data:`RANKINGS`). `linked` is false for a flow that waits for a link. It has waited since
    `waiting_since`, and ends after `waiting_left` more seconds.
    """
    slots = list(instance.workers)  # a retiring worker may leave the list meanwhile
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
    """Yields the rows, and lets the event loop go on after each :data:`TURN` rows."""
    for number, row in enumerate(rows, 1):
        yield row
        if number % TURN == 0:
            await asyncio.sleep(0)


class Counted(Protocol):
    """The links, as far as the status line needs them."""

    @property
    def peers(self) -> Sized:
        """The configured peers."""

    def up(self) -> Sized:
        """The links that are up."""

    def status(self) -> list[dict[str, Any]]:
        """A row for each link, and for each peer without one."""


def status_line(role: str, links: Counted, flows: int, workers: int) -> str:
    """Returns the sentence that the service manager shows: role, links, flows, workers."""
    peers = len(links.peers)
    if peers <= PEERS_IN_LINE:
        parts = [_link_words(link) for link in links.status()]
    else:  # only counted, because thousands of rows would delay packets
        parts = [f"{len(links.up())} of {peers} links up"]
    parts.append(_count(flows, "flow"))
    parts.append(_count(workers, "worker"))
    return f"{role}: {', '.join(parts)}"


async def log_report(instance: Summarized) -> None:
    """Writes the state into the log: a line for the instance, each link and each worker."""
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
