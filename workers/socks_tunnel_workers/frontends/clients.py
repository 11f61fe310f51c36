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

from socks_tunnel.config.users import PasswordChecker
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel_workers.relay.session import WorkerSession
from socks_tunnel_workers.services import Counters, Notices, Quota, QuotaSlot, Settings

logger = logging.getLogger(__name__)


class Waiting(Protocol):
    """A client whose flow is not open yet."""

    def open_on(self, session: WorkerSession) -> None:
        """Opens the flow on a session that transmits."""

    def close(self) -> None:
        """Closes the client's connection without a word."""


class Login(Protocol):
    """A client that has offered a user name and a password."""

    client: str

    def password_checked(self, *, ok: bool) -> None:
        """Learns whether they are right."""


class Clients:
    """The clients of one worker. `full` says whether it holds as many flows as it may."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        settings: Settings,
        counters: Counters,
        notices: Notices,
        metrics: Metrics,
        full: Callable[[], bool],
    ) -> None:
        self.loop = loop
        self.settings = settings
        self.counters = counters
        self.notices = notices
        self.metrics = metrics
        self.draining = False
        self.opening: set[Waiting] = set()
        """Clients in their handshake, or whose flow is being opened."""
        self.associations = Quota(settings.config.limits.associations_per_client)
        self._full = full
        self._target: WorkerSession | None = None
        self._waiting: dict[Waiting, None] = {}
        self._password_threads = ThreadPoolExecutor(2, thread_name_prefix="password")

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
            client.open_on(target)

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

    # --- limits -----------------------------------------------------------------------------------

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

    # --- logins -----------------------------------------------------------------------------------

    def check_password(self, login: Login, username: str, password: str) -> None:
        """Answers at once if this login was right before, else from a thread: hashing is slow."""
        checker = self.settings.passwords
        if checker is None:  # a reload took the users away: nobody can be let in on old terms
            login.password_checked(ok=False)
        elif checker.remembers(username, password):
            login.password_checked(ok=True)
        else:
            spawn("check a password", self._check_password(checker, login, username, password))

    async def _check_password(
        self, checker: PasswordChecker, login: Login, username: str, password: str
    ) -> None:
        ok = await self.loop.run_in_executor(
            self._password_threads, checker.check, username, password
        )
        if not ok:
            logger.warning("client %s offered a wrong user name or password", login.client)
        login.password_checked(ok=ok)

    # --- the end ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes all clients whose flows are not open yet."""
        for client in list(self.opening):
            client.close()

    def shutdown(self) -> None:
        """Lets go of the threads; one that still hashes ends by itself."""
        self._password_threads.shutdown(wait=False, cancel_futures=True)
