"""The clients of a gateway's worker whose flows are not open yet, for all front ends.

:mod:`socks_tunnel_workers.frontends.routing` chooses the session of a new flow. While there is
none, clients wait here, for up to their connect timeout.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel_workers.frontends.logins import THREADS as LOGIN_THREADS
from socks_tunnel_workers.frontends.logins import Logins
from socks_tunnel_workers.frontends.routing import Closable, Routing
from socks_tunnel_workers.relay.routed_udp import RoutedAssociation
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.services import Account, Counters, Notices, Quota, QuotaSlot, Settings

logger = logging.getLogger(__name__)


class Waiting(Protocol):
    """A client whose flow is not open yet."""

    @property
    def asker(self) -> Closable:
        """Its connection."""

    def try_again(self) -> None:
        """Opens the flow if there is a session for it now, and waits again if there is none."""


class Connected(Closable, Protocol):
    """The state of a client in its front end."""

    @property
    def idle(self) -> bool:
        """Whether it waits for nothing, so that it loses nothing when it is closed."""

    @property
    def answering(self) -> bool:
        """Whether a part of an answer is on its way to it. A drain waits for the rest."""


class Clients:
    """The clients of one worker. `full` returns whether it has as many flows as it may."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        counters: Counters,
        notices: Notices,
        metrics: Metrics,
        memory: Account,
        routing: Routing,
        full: Callable[[], bool],
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.counters = counters
        self.notices = notices
        self.metrics = metrics
        self.memory = memory
        self.opening: set[Connected] = set()
        """Clients in their handshake, or whose flow is being opened, or that speak HTTP."""
        self.asked: set[Waiting] = set()
        """Those of them whose flow exists and waits for its answer. They count as a flow."""
        self.associations = Quota(settings.config.limits.associations_per_client)
        self.relays: set[RoutedAssociation] = set()
        """Associations whose legs are flows, and which are not flows themselves."""
        self.routing = routing
        self._full = full
        self._bugs = BugLog()
        self._waiting: dict[Waiting, None] = {}
        self._password_threads = ThreadPoolExecutor(LOGIN_THREADS, thread_name_prefix="password")
        self.logins = Logins(
            loop, self._password_threads, lambda: self.settings.passwords, notices.warn
        )

    # --- which session ----------------------------------------------------------------------------

    def set_targets(self, targets: list[list[list[int]]], beside: list[list[list[float]]]) -> None:
        """Takes the supervisor's table (see :meth:`Routing.set_targets`), and opens flows by it."""
        self.routing.set_targets(targets, beside)
        self.wake()
        # The table may pass over a peer that has not answered a request yet.
        for request in list(self.routing.unanswered):
            self.guard(request.asker, request.reconsider)

    def wake(self) -> None:
        """Opens the flows of the clients that wait, if any session can transmit."""
        if not self._waiting or not self.routing.some:
            return
        waiting, self._waiting = list(self._waiting), {}
        for client in waiting:
            self.guard(client.asker, client.try_again)

    def wait(self, client: Waiting) -> None:
        """Lets the client try again as soon as there is a session that takes new flows."""
        self._waiting[client] = None

    def stop_waiting(self, client: Waiting) -> None:
        """Forgets a client that waits; harmless if it does not."""
        self._waiting.pop(client, None)

    @property
    def waiting(self) -> int:
        """How many clients wait for a session."""
        return len(self._waiting)

    # --- bugs -------------------------------------------------------------------------------------

    def guard(self, client: Closable, handler: Callable[..., object], *arguments: object) -> None:
        """Calls the handler of a client's socket or timer. A bug in it closes this client alone.

        Without this the event loop would log each bug, and call a socket's handler again at once.
        """
        try:
            handler(*arguments)
        except Exception as error:  # noqa: BLE001 - the border: a bug costs one client
            self.bug(error, "closing a client of the proxy")
            try:
                client.close()
            except Exception as second:  # noqa: BLE001 - the client is forgotten all the same
                self.bug(second, "a client of the proxy cannot be closed; its socket may stay open")
                self.opening -= {client}

    def bug(self, error: Exception, consequence: str) -> None:
        """Counts a bug of ours that a client met, and logs it once for its kind."""
        self.counters.count("protocol_errors_total", "bug")
        self._bugs.tell(logger, f"a front end met a bug: {consequence}", error)

    # --- limits -----------------------------------------------------------------------------------

    @property
    def handshakes(self) -> int:
        """Client connections that do not count as a flow yet."""
        return len(self.opening) - len(self.asked)

    @property
    def full(self) -> bool:
        """Whether the worker has as many flows as it may, so that no client is accepted."""
        return self._full()

    def take_association(self, client: str) -> QuotaSlot | None:
        """Returns a slot for one more association of the client, or None at its limit.

        Warns the operator in the latter case.
        """
        slot = self.associations.take(client)
        if slot is None:
            self.notices.warn(
                "associations",
                "client %s has %d UDP associations in this worker "
                "(limits.associations_per_client); refusing more",
                client,
                self.associations.held(client),
            )
        return slot

    def report_full(self) -> None:
        """Tells the operator that clients are refused."""
        self.notices.warn(
            "full",
            "this worker holds as many flows as limits.flows_per_worker allows (%d); refusing more",
            self.settings.config.limits.flows_per_worker,
        )

    def report_flow_limit(self, session: WorkerSession, error: RemoteProtocolError) -> None:
        """Tells the operator that a flow could not be added to a session."""
        self.notices.warn("flow-limit", "refusing a new flow to peer %s: %s", session.peer, error)

    def report_resource(self, error: OSError) -> None:
        """Tells the operator that the system refused something, such as a file descriptor."""
        self.notices.warn("resource", "a client cannot be served: %s", error)

    # --- the end ----------------------------------------------------------------------------------

    def close_idle(self) -> None:
        """Closes the clients that wait for nothing."""
        for client in [client for client in self.opening if client.idle]:
            self.guard(client, client.close)

    def give_up(self) -> None:
        """Closes all clients whose flows are not open yet."""
        for client in list(self.opening):
            self.guard(client, client.close)

    def close(self) -> None:
        """Closes these clients, and the associations whose flows are in several sessions."""
        self.give_up()
        for relay in list(self.relays):
            relay.abort(CloseReason.SHUTTING_DOWN)

    def drain(self) -> None:
        """Lets those associations take no new datagrams, and end with their last flow."""
        for relay in list(self.relays):
            relay.drain()

    def shutdown(self) -> None:
        """Lets the password threads end. A check that is running is not waited for."""
        self._password_threads.shutdown(wait=False, cancel_futures=True)
