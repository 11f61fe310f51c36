"""Frees memory when the flows of a worker hold more than `limits.memory_per_worker`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.relay.tcp import QUIET_SECONDS, WINDOW_WHEN_SHORT, TcpRelay
from socks_tunnel_workers.services import Account, Counters, Notices

logger = logging.getLogger(__name__)


class MemoryRelief:
    """Frees memory until the account is within its limit, in this order.

    1. The windows of quiet flows shrink. Most of them have shrunk before, when half of the memory
       was in use (:meth:`TcpRelay.sweep`).
    2. Sessions without a link are ended, the one that lost its link longest ago first. Their peers
       may never come back.
    3. The windows of all flows shrink to :data:`WINDOW_WHEN_SHORT`, so that less comes from now on,
       but no flow stands still.
    4. The flows that hold most are closed with reason 0x17 (RESOURCE_LIMIT).

    `sessions` are all sessions of the worker, and `now` returns seconds of the loop's clock.
    """

    def __init__(
        self,
        account: Account,
        sessions: Iterable[WorkerSession],
        notices: Notices,
        counters: Counters,
        now: Callable[[], float],
    ) -> None:
        self._account = account
        self._sessions = sessions
        self._notices = notices
        self._counters = counters
        self._now = now

    def relieve(self) -> None:
        """Frees memory until the account is within its limit."""
        account = self._account
        relays = [
            flow
            for session in self._sessions
            for flow in session.flows
            if isinstance(flow, TcpRelay)
        ]
        moved_since = self._now() - QUIET_SECONDS
        for relay in relays:
            if relay.active < moved_since:
                relay.shrink(WINDOW_WHEN_SHORT)
        detached = sorted(
            (session for session in self._sessions if not session.core.attached),
            key=lambda session: session.detached_at,
        )
        for session in detached:
            if not account.over:
                return
            self._give_up(session)
        if not account.over:
            return
        for relay in relays:
            relay.shrink(WINDOW_WHEN_SHORT)
        self._close_largest(relays)

    def _close_largest(self, relays: list[TcpRelay]) -> None:
        """Closes the flows that hold most until the account is within its limit."""
        account = self._account
        relays.sort(key=lambda relay: relay.charge.used)
        while account.over and relays:
            relay = relays.pop()
            if relay.ended:
                continue
            self._notices.warn(
                "memory",
                "flows hold %d bytes (limits.memory_per_worker is %d); closing flow %d to %s, "
                "which holds %d",
                account.used,
                account.limit,
                relay.conn_id,
                relay.destination,
                relay.charge.used,
            )
            relay.abort(CloseReason.RESOURCE_LIMIT)

    def _give_up(self, session: WorkerSession) -> None:
        flows = len(session.flows)
        if not flows:
            return
        held = self._account.used
        logger.warning(
            "flows hold %d bytes (limits.memory_per_worker is %d); closing the %d flows of the "
            "session with peer %s, which has no link",
            held,
            self._account.limit,
            flows,
            session.peer,
        )
        session.end(CloseReason.RESOURCE_LIMIT, tell_peer=True)
        self._counters.count("sessions_given_up_total", "memory")
