"""The endpoint's answer to OPEN_CONNECTION and BIND: decide, dial or listen, then relay."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from socks_tunnel.ops.accepting import accept
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_ip
from socks_tunnel.protocol.errors import CloseReason, Reply
from socks_tunnel.protocol.messages import (
    Bind,
    BindAccepted,
    BindListening,
    ConnectionOpened,
    OpenConnection,
)
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.sockets import (
    Liveness,
    is_shortage,
    keep_alive,
    listen_toward,
    prepare_stream,
    reset,
)
from socks_tunnel_workers.targets.access import (
    AccessDeniedError,
    Allowed,
    Asker,
    UnresolvedError,
)
from socks_tunnel_workers.targets.attempt import Attempt
from socks_tunnel_workers.targets.dialer import DialError, dial
from socks_tunnel_workers.targets.services import TargetServices

if TYPE_CHECKING:
    from socks_tunnel.protocol.policy import Policy
    from socks_tunnel_workers.relay.session import WorkerSession

logger = logging.getLogger(__name__)

BIND_SECONDS = 120.0
"""Seconds in which the expected caller of a BIND must connect."""


def socket_name(sock: socket.socket) -> HostPort:
    """Returns the local address of an IP socket."""
    host, port = sock.getsockname()[:2]
    return HostPort(str(host), int(port))


class TargetRelay(TcpRelay):
    """A TCP flow on the endpoint, from the request on. `attempt` or `task` opens its socket."""

    __slots__ = ("allowed", "attempt", "kept_alive", "listener", "targets", "task")

    def __init__(
        self, targets: TargetServices, session: WorkerSession, request: OpenConnection | Bind
    ) -> None:
        if isinstance(request, OpenConnection):
            command, destination = "connect", HostPort(request.host, request.port)
        else:
            command, destination = "bind", request.caller
        super().__init__(
            session,
            request.conn_id,
            command=command,
            client=session.peer,
            destination=destination,
        )
        self.targets = targets
        self.allowed: Allowed | None = None
        """The decision about the flow. Once it is open, it has only the address in use."""
        self.listener: socket.socket | None = None
        """The listening socket for the caller of a BIND."""
        self.attempt: Attempt | None = None
        self.task: asyncio.Task[None] | None = None
        self.kept_alive = False
        """Whether the system was asked to look after the connection."""

    def start(self) -> None:
        """Begins to decide, and then to dial or to listen."""
        if self.command == "connect" and self._connect_to_literal():
            return
        work = self._connect() if self.command == "connect" else self._bind()
        self.task = spawn(f"{self.command} flow {self.conn_id}", work, on_failure=self._failed)

    def _policy(self) -> Policy:
        return self.targets.policy(self.session.peer)

    def _asker(self) -> Asker:
        return Asker(self.session.peer, self.conn_id, self.command)

    def recheck(self) -> Iterator[None]:
        """Ends the flow if the policy in force forbids it.

        It is a generator, so that a reload can stop between its steps.
        """
        # A flow without a decision will be decided by the policy in force.
        if self.allowed is not None:
            self._permitted(self.allowed)
        yield

    def _permitted(self, allowed: Allowed) -> bool:
        """Returns whether all addresses are still allowed. Ends the flow if not."""
        assert self.destination is not None
        permitted = self.targets.access.recheck(
            self._asker(), self._policy(), self.destination, allowed.name, allowed.addresses
        )
        if len(permitted) == len(allowed.addresses):
            return True
        self._refuse(Reply.NOT_ALLOWED, "the changed policy does not allow it")
        return False

    def _failed(self, error: BaseException) -> None:
        """Ends the flow after a bug that the task has logged, so that its client does not wait."""
        del error
        self.abort(CloseReason.GENERAL_FAILURE)

    def _refuse(self, reply: Reply, sentence: str) -> None:
        if not self.ended:
            logger.debug("flow %d to %s: %s", self.conn_id, self.destination, sentence)
            self.abort(reply)

    async def _decide(self, seconds: float) -> Allowed | None:
        assert self.destination is not None
        try:
            self.allowed = await self.targets.access.decide(
                self._asker(), self._policy, self.destination, seconds=seconds
            )
        except (AccessDeniedError, UnresolvedError) as error:
            self._refuse(error.reply, str(error))
            return None
        return None if self.ended else self.allowed

    def _liveness(self) -> Liveness:
        targets = self.session.settings.config.targets
        return Liveness(targets.keepalive, targets.user_timeout)

    def _connect_to_literal(self) -> bool:
        """Decides about an IP literal and connects to it. Returns False if it is a name."""
        assert self.destination is not None
        try:
            allowed = self.targets.access.literal(self._asker(), self._policy(), self.destination)
        except AccessDeniedError as error:
            self._refuse(error.reply, str(error))
            return True
        if allowed is None:
            return False
        self.allowed = allowed
        session = self.session
        self.attempt = Attempt(
            session.loop,
            self,
            partial(session.core.guard, self),
            allowed.addresses[0],
            self.destination.port,
            seconds=session.settings.config.targets.connect_timeout,
        )
        self.attempt.start(self._liveness())
        return True

    def sweep(self, now: float) -> None:
        """Has the connection kept alive, and does what is due for any flow."""
        # Not when it is made: most connections are over before the first probe, and before a sweep.
        if self.sock is not None and not self.kept_alive:
            self.kept_alive = True
            keep_alive(self.sock, self._liveness())
        super().sweep(now)

    def take(self, sock: socket.socket) -> None:
        """Keeps the connected socket, and watches it for reading."""
        self.sock = sock
        self.resume_reading()

    def connected(self) -> None:
        """Answers the request, and begins to relay."""
        self.attempt = None
        assert self.sock is not None
        self._opened(self.sock)

    def not_connected(self, error: DialError) -> None:
        """Refuses the request with the reason of the error."""
        if error.shortage:
            self.targets.warn("resource", "cannot connect to %s: %s", self.destination, error)
        self._refuse(error.reply, str(error))

    def _opened(self, sock: socket.socket) -> None:
        session = self.session
        session.metrics.connect_seconds.observe(session.loop.time() - self.started)
        self.reply(ConnectionOpened(self.conn_id, socket_name(sock)).encode())
        self.attach(sock)

    async def _connect(self) -> None:
        loop = self.session.loop
        seconds = self.session.settings.config.targets.connect_timeout
        deadline = loop.time() + seconds
        allowed = await self._decide(seconds)
        if allowed is None:
            return
        assert self.destination is not None
        left = max(deadline - loop.time(), 0.0)
        try:
            sock = await dial(
                allowed.addresses, self.destination.port, seconds=left, liveness=self._liveness()
            )
        except DialError as error:
            self.not_connected(error)
            return
        self.allowed = Allowed((_peer_address(sock),), allowed.ttl, allowed.name)
        self._opened(sock)

    async def _bind(self) -> None:
        """Listens for one connection from the expected caller (RFC 1928 section 4, BIND).

        A listening socket of the previous program is used again.
        """
        if self.listener is None:
            allowed = await self._decide(self.session.settings.config.targets.connect_timeout)
            if allowed is None:
                return
            try:
                self.listener = listen_toward(allowed.addresses[0])
            except OSError as error:
                self._cannot_listen(error)
                return
            self.reply(BindListening(self.conn_id, socket_name(self.listener)).encode())
        assert self.allowed is not None
        expected = set(map(str, self.allowed.addresses))
        with self.listener as listener:
            try:
                async with asyncio.timeout(BIND_SECONDS):
                    sock, caller = await self._accept(listener, expected)
            except TimeoutError:
                self._refuse(Reply.TTL_EXPIRED, f"no caller connected within {BIND_SECONDS:g} s")
                return
            except OSError as error:
                self._cannot_listen(error)
                return
            finally:
                self.listener = None
        prepare_stream(sock, self._liveness())
        self.destination = caller
        self.allowed = Allowed((_peer_address(sock),), None)
        self.reply(BindAccepted(self.conn_id, caller).encode())
        self.attach(sock)

    def _cannot_listen(self, error: OSError) -> None:
        if is_shortage(error):
            self.targets.warn("resource", "cannot listen for %s: %s", self.destination, error)
        self._refuse(Reply.GENERAL_FAILURE, f"cannot listen: {error}")

    async def _accept(
        self, listener: socket.socket, expected: set[str]
    ) -> tuple[socket.socket, HostPort]:
        while True:
            try:
                sock, name = await accept(listener)
            except ConnectionAbortedError:
                continue  # the caller has left before it was accepted
            if name[0] in expected:
                return sock, HostPort(str(name[0]), int(name[1]))
            # RFC 1928 section 4: the server uses DST to evaluate the BIND request. So any other
            # caller is refused, and the listening socket stays.
            reset(sock)
            self.targets.warn(
                "bind-caller",
                "BIND flow %d: refusing a caller from %s; expecting one from %s",
                self.conn_id,
                name[0],
                self.destination,
            )

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends the flow, and the attempt to connect or to listen if there is one."""
        super().abort(reason, tell_peer=tell_peer)
        self._stop_work()

    def _closed_by_peer(self, reason: int) -> None:
        super()._closed_by_peer(reason)
        self._stop_work()

    def _stop_work(self) -> None:
        if self.attempt is not None:
            self.attempt.cancel()
            self.attempt = None
        task, self.task = self.task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()


def _peer_address(sock: socket.socket) -> IPAddress:
    """Returns the address of the other end of an IP socket."""
    address = parse_ip(str(sock.getpeername()[0]).partition("%")[0])
    assert address is not None, "the kernel names peers by address"
    return address
