"""Periodic work of a worker: timers of flows, metrics, and forgetting closed flows."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel_workers.frontends.clients import Clients
from socks_tunnel_workers.relay.session import Flow, WorkerSession
from socks_tunnel_workers.services import Account, Counters, Notices, Settings

SWEEP_SECONDS: Final = 2.0
"""Seconds between two looks at the timers of flows: idle times are exact to within this."""

SWEEP_FLOWS: Final = 500
"""Flows looked at in one turn of the event loop."""

FORGET_SECONDS: Final = 30.0
"""Seconds between two times at which closed flows are forgotten. The peer must have heard of their
end by then, because a dead link is noticed within half of this."""

METRICS_SECONDS: Final = 1.0
"""Seconds between two times at which counts of the data path are added to the metrics."""


class Upkeep:
    """Looks after the flows and the figures of one worker until :meth:`stop`.

    `buffered` returns how many bytes wait to be sent to the supervisor.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        sessions: Mapping[int, WorkerSession],
        clients: Clients,
        counters: Counters,
        notices: Notices,
        metrics: Metrics,
        memory: Account,
        buffered: Callable[[], int],
    ) -> None:
        self._loop = loop
        self._settings = settings
        self._sessions = sessions
        self._clients = clients
        self._counters = counters
        self._notices = notices
        self._metrics = metrics
        self._memory = memory
        self._buffered = buffered
        self._stopped = False

    def start(self) -> None:
        """Starts the periodic work."""
        self._loop.call_later(SWEEP_SECONDS, self._sweep)
        self._loop.call_later(METRICS_SECONDS, self._each_second)
        self._loop.call_later(FORGET_SECONDS, self._forget_closed)

    def stop(self) -> None:
        """Ends the periodic work."""
        self._stopped = True

    def flush_metrics(self) -> None:
        """Adds what was counted to the metrics."""
        for session in self._sessions.values():
            expired, overflowed = session.scheduler.take_dropped()
            self._counters.drop("expired", expired)
            self._counters.drop("queue-full", overflowed)
        self._clients.routing.flush()
        metrics, memory = self._metrics, self._memory
        self._counters.export(metrics, gateway=self._settings.config.role == "gateway")
        self._notices.flush()
        metrics.buffered_bytes.labels("worker").set(memory.used)
        metrics.buffered_bytes.labels("ipc-worker").set(self._buffered())
        metrics.worker_buffer_bytes.labels(metrics.process).set(memory.used)
        metrics.worker_buffer_limit_bytes.labels(metrics.process).set(memory.limit)

    def status_row(self) -> dict[str, object]:
        """Returns what `socks-tunnel status` shows of this worker."""
        totals = self._counters.totals(gateway=self._settings.config.role == "gateway")
        return {
            "flows_tcp": self._counters.active["tcp"],
            "flows_udp": self._counters.active["udp"],
            "sessions": len(self._clients.opening),
            "bytes_up": totals["up", "tcp"] + totals["up", "udp"],
            "bytes_down": totals["down", "tcp"] + totals["down", "udp"],
            "buffered": self._memory.used,
        }

    def waiting_flows(self) -> list[Flow]:
        """Returns the flows of sessions without a link.

        They include closed flows whose local sockets have not taken all bytes yet.
        """
        return [
            flow
            for session in self._sessions.values()
            if not session.core.attached
            for flow in (*session.flows, *session.lingering)
        ]

    def _each_second(self) -> None:
        if not self._stopped:
            self._loop.call_later(METRICS_SECONDS, self._each_second)
        self.flush_metrics()

    def _sweep(self) -> None:
        for relay in list(self._clients.relays):
            self._clients.guard(relay, relay.sweep, self._loop.time())
        self._sweep_some(
            [
                (session, flow)
                for session in self._sessions.values()
                for flow in (*session.flows, *session.lingering)
            ],
            0,
        )

    def _sweep_some(self, left: list[tuple[WorkerSession, Flow]], windows: int) -> None:
        """Looks at up to :data:`SWEEP_FLOWS` flows, and at the rest in later turns of the loop.

        `windows` is the sum in bytes of the receive windows of the flows looked at so far.
        """
        now = self._loop.time()
        for session, flow in left[-SWEEP_FLOWS:]:
            session.core.guard(flow, flow.sweep, now)
            windows += 0 if flow.ended else flow.receive_window
        del left[-SWEEP_FLOWS:]
        if self._stopped:
            return
        if left:
            self._loop.call_soon(self._sweep_some, left, windows)
        else:
            self._metrics.window_bytes.set(windows)
            self._loop.call_later(SWEEP_SECONDS, self._sweep)

    def _forget_closed(self) -> None:
        if not self._stopped:
            self._loop.call_later(FORGET_SECONDS, self._forget_closed)
        for session in self._sessions.values():
            session.core.forget_closed()
