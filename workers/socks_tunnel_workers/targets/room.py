"""The endpoint's room: opens the flows that a gateway asks for, and holds them to the policy."""

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
"""How long a reload may hold the event loop at a time while it goes through the flows."""


class Targets:
    """Everything that leads out of an endpoint's worker.

    `warn` logs a sentence for the operator, at most one of a kind in a while; `flows` returns the
    flows that are open now; `full` says whether the worker holds as many as it may.
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
        """Admits a flow that a gateway asks for, and begins its work.

        The session has seen that its CONN_ID is free. Nothing exists for a flow that is refused.
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
        """Ends the flows and routes that the policies in force forbid (0x02).

        It takes turns with everything else on the event loop. A reload in the middle of another one
        begins anew, with the newer policies.
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
                    # Whether the policy still allows it is not known.
                    flow.session.core.guard(flow, _fail, error)
            yield  # also after one with nothing to check: thousands of them take their time

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
