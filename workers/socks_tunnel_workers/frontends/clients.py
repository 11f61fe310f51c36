"""What the front ends of a gateway's worker share: the clients whose flows are not open yet.

The supervisor says which session takes new flows. While it names none, or one that has no link at
the moment, clients wait here, up to their connect timeout.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel_workers.frontends.logins import THREADS as LOGIN_THREADS
from socks_tunnel_workers.frontends.logins import Logins
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.services import Account, Counters, Notices, Quota, QuotaSlot, Settings

logger = logging.getLogger(__name__)


class Waiting(Protocol):
    """A client whose flow is not open yet."""

    @property
    def asker(self) -> Closable:
        """Its connection."""

    def open_on(self, session: WorkerSession) -> None:
        """Opens the flow on a session that transmits."""


class Closable(Protocol):
    """A client's connection that is no flow."""

    def close(self) -> None:
        """Closes it without a word."""


class Connected(Closable, Protocol):
    """A client as its front end has it."""

    @property
    def idle(self) -> bool:
        """Whether it waits for nothing: closing it takes nothing away."""


class Clients:
    """The clients of one worker. `full` says whether it holds as many flows as it may."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        counters: Counters,
        notices: Notices,
        metrics: Metrics,
        memory: Account,
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
        """Those of them who count as a flow already, while its answer is awaited."""
        self.associations = Quota(settings.config.limits.associations_per_client)
        self._full = full
        self._bugs = BugLog()
        self._target: WorkerSession | None = None
        self._waiting: dict[Waiting, None] = {}
        self._password_threads = ThreadPoolExecutor(LOGIN_THREADS, thread_name_prefix="password")
        self.logins = Logins(
            loop, self._password_threads, lambda: self.settings.passwords, notices.warn
        )

    # --- which session ----------------------------------------------------------------------------

    @property
    def target(self) -> WorkerSession | None:
        """The session that takes new flows, if it can transmit now."""
        target = self._target
        return target if target is not None and target.open_to_send else None

    def set_target(self, session: WorkerSession | None) -> None:
        """Lets new flows go to a session from now on: the supervisor decides."""
        self._target = session
        self.wake()

    def wake(self) -> None:
        """Opens the flows of those who wait, if there is a session that takes them."""
        target = self.target
        if target is None:
            return
        waiting, self._waiting = list(self._waiting), {}
        for client in waiting:
            self.guard(client.asker, client.open_on, target)

    def forget(self, session: WorkerSession) -> None:
        """Opens nothing more on a session that is over."""
        if self._target is session:
            self._target = None

    def wait(self, client: Waiting) -> None:
        """Opens the client's flow as soon as a session takes it."""
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
        """Calls what a socket or a timer has for a client; a bug of ours costs this client alone.

        Without it the event loop would log each, and call the handler of a socket again at once.
        """
        try:
            handler(*arguments)
        except Exception as error:  # noqa: BLE001 - the border: one event costs one client
            self.bug(error, "closing a client of the proxy")
            try:
                client.close()
            except Exception as second:  # noqa: BLE001 - it cannot even be closed
                self.bug(second, "a client of the proxy could not be closed")
                self.opening -= {client}

    def bug(self, error: Exception, consequence: str) -> None:
        """Counts a bug of ours that a client met, and logs it once for its kind."""
        self.counters.count("protocol_errors_total", "bug")
        self._bugs.tell(logger, f"a front end met a bug: {consequence}", error)

    # --- limits -----------------------------------------------------------------------------------

    @property
    def handshakes(self) -> int:
        """How many connections there are that do not count as a flow."""
        return len(self.opening) - len(self.asked)

    @property
    def full(self) -> bool:
        """Whether nothing more may be taken in."""
        return self._full()

    def take_association(self, client: str) -> QuotaSlot | None:
        """Returns a slot for one more association of the client, None if it has all it may."""
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
        self.notices.warn("flow-limit", "no new flow to %s: %s", session.peer, error)

    def report_resource(self, error: OSError) -> None:
        """Tells the operator that the system refuses something, such as file descriptors."""
        self.notices.warn("resource", "a client cannot be served: %s", error)

    # --- the end ----------------------------------------------------------------------------------

    @property
    def settled(self) -> bool:
        """Whether no client waits for anything. Those that are idle are closed."""
        for client in [client for client in self.opening if client.idle]:
            client.close()
        return not self.opening

    def close(self) -> None:
        """Closes all clients whose flows are not open yet."""
        for client in list(self.opening):
            self.guard(client, client.close)

    def shutdown(self) -> None:
        """Lets go of the threads; one that still hashes ends by itself."""
        self._password_threads.shutdown(wait=False, cancel_futures=True)
