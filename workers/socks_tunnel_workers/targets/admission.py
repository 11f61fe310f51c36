"""Admits the flows that gateways ask an endpoint for, and ends those that a reload forbids."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    Bind,
    OpenConnection,
    Resolve,
    UdpAssociate,
)
from socks_tunnel.protocol.session import Opening
from socks_tunnel_workers.targets.access import Access
from socks_tunnel_workers.targets.questions import Questions
from socks_tunnel_workers.targets.resolver import Resolver
from socks_tunnel_workers.targets.services import Settings, TargetServices
from socks_tunnel_workers.targets.tcp import TargetRelay
from socks_tunnel_workers.targets.udp import EndpointAssociation

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import Flow, WorkerSession

logger = logging.getLogger(__name__)

RECHECK_SECONDS: Final = 0.002
"""Seconds for which a reload may hold the event loop at a time while it checks the flows."""


class Targets:
    """The flows of an endpoint's worker to targets, and the questions about names.

    `warn` is :meth:`~socks_tunnel_workers.services.Notices.warn`, `flows` returns all open flows,
    and `full` returns whether the worker has as many flows as it may.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        resolver: Resolver,
        access: Access,
        warn: Callable[..., None],
        flows: Callable[[], Iterable[Flow]],
        full: Callable[[], bool],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.services = TargetServices(settings, access, warn)
        self.questions = Questions(self.services, resolver)
        self._flows = flows
        self._full = full
        self._recheck: Iterator[None] | None = None

    # --- flows ----------------------------------------------------------------------------------

    def open(self, session: WorkerSession, message: Opening) -> None:
        """Admits a flow that a gateway asks for and starts it, or refuses it.

        The session has checked that its CONN_ID is free. Nothing is allocated for a refused flow.
        """
        reason = None
        if session.draining:
            reason = CloseReason.SHUTTING_DOWN
        elif self._full():
            reason = CloseReason.RESOURCE_LIMIT
            self.services.warn(
                "full",
                "this worker holds as many flows as limits.flows_per_worker allows (%d); "
                "refusing more",
                self.services.settings.config.limits.flows_per_worker,
            )
        if reason is not None:
            session.core.refuse(message.conn_id, reason, kind=message.TYPE)
        elif isinstance(message, Resolve):
            self.questions.ask(session, message)
        else:
            self._start(session, message)

    def _start(self, session: WorkerSession, message: OpenConnection | Bind | UdpAssociate) -> None:
        flow: TargetRelay | EndpointAssociation
        if isinstance(message, UdpAssociate):
            flow = EndpointAssociation(self.services, session, message.conn_id)
        else:
            flow = TargetRelay(self.services, session, message)
        session.admit(flow)
        try:
            flow.start()
        except OSError as error:
            self.services.warn(
                "resource", "cannot open a socket for peer %s: %s", session.peer, error
            )
            flow.abort(CloseReason.RESOURCE_LIMIT)

    # --- reload ---------------------------------------------------------------------------------

    def reload(self) -> None:
        """Ends the flows and routes that the policies in force forbid (reason 0x02, NOT_ALLOWED).

        This is done in steps of :data:`RECHECK_SECONDS`. A reload during another one begins anew,
        with the newer policies.
        """
        running = self._recheck is not None
        self._recheck = self._rechecks(list(self._flows()))
        if not running:
            self._recheck_some()

    @staticmethod
    def _rechecks(flows: list[Flow]) -> Iterator[None]:
        for flow in flows:
            if isinstance(flow, TargetRelay | EndpointAssociation) and not flow.ended:
                try:
                    yield from flow.recheck()
                except Exception as error:  # noqa: BLE001 - the border: a bug costs this flow alone
                    # It is not known whether the policy still allows the flow, so it ends.
                    flow.session.core.guard(flow, _fail, error)
            yield  # also after a flow without a check: to go through thousands takes time as well

    def _recheck_some(self) -> None:
        assert self._recheck is not None
        until = self.loop.time() + RECHECK_SECONDS
        for _ in self._recheck:
            if self.loop.time() >= until:
                self.loop.call_soon(self._recheck_some)
                return
        self._recheck = None


def _fail(error: Exception) -> None:
    raise error
