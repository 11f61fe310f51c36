"""The endpoint's answer to OPEN_CONNECTION and BIND: decide, dial or listen, then relay."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import TYPE_CHECKING

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort, IPAddress
from socks_tunnel.protocol.errors import CloseReason, Reply
from socks_tunnel.protocol.messages import (
    Bind,
    BindAccepted,
    BindListening,
    ConnectionOpened,
    OpenConnection,
)
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.sockets import prepare_stream, reset
from socks_tunnel_workers.targets.access import AccessDeniedError, decide
from socks_tunnel_workers.targets.dialer import DialError, dial

if TYPE_CHECKING:
    from socks_tunnel.protocol.policy import Policy
    from socks_tunnel_workers.relay.session import WorkerLink

logger = logging.getLogger(__name__)

BIND_SECONDS = 120.0
"""Time in which the expected caller of a BIND must have come."""


def socket_name(sock: socket.socket) -> HostPort:
    """Give the local address of an IP socket."""
    host, port = sock.getsockname()[:2]
    return HostPort(str(host), int(port))


class TargetRelay(TcpRelay):
    """A TCP flow on the endpoint, from the request on; `task` brings its socket."""

    __slots__ = ("policy", "task")

    def __init__(
        self, link: WorkerLink, conn_id: int, policy: Policy, request: OpenConnection | Bind
    ) -> None:
        if isinstance(request, OpenConnection):
            command, destination = "connect", HostPort(request.host, request.port)
        else:
            command, destination = "bind", request.caller
        super().__init__(
            link,
            conn_id,
            command=command,
            client=link.peer,
            destination=destination,
            sock=None,
            opener=None,
        )
        self.policy = policy
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to decide and to dial, or to listen."""
        work = self._connect() if self.command == "connect" else self._bind()
        self.task = spawn(f"{self.command} flow {self.conn_id}", work, on_failure=self._failed)

    def _failed(self, error: BaseException) -> None:
        """A bug of ours must not leave the client waiting (the task has logged it)."""
        del error
        self.abort(CloseReason.GENERAL_FAILURE)

    def _refuse(self, reply: Reply, sentence: str) -> None:
        if not self.ended:
            logger.debug("flow %d to %s: %s", self.conn_id, self.destination, sentence)
            self.abort(reply)

    async def _addresses(self, seconds: float) -> list[IPAddress] | None:
        assert self.destination is not None
        try:
            return await decide(self, self.policy, self.destination, seconds=seconds)
        except AccessDeniedError as error:
            self._refuse(error.reply, str(error))
            return None

    async def _connect(self) -> None:
        worker = self.link.worker
        seconds = worker.config.socks.connect_timeout
        deadline = worker.loop.time() + seconds
        addresses = await self._addresses(seconds)
        if addresses is None or self.ended:
            return
        assert self.destination is not None
        left = max(deadline - worker.loop.time(), 0.0)
        try:
            sock = await dial(addresses, self.destination.port, seconds=left)
        except DialError as error:
            self._refuse(error.reply, str(error))
            return
        worker.metrics.connect_seconds.observe(worker.loop.time() - self.started)
        self.link.send(ConnectionOpened(self.conn_id, socket_name(sock)).encode())
        self.attach(sock)

    async def _bind(self) -> None:
        """Listen for one connection from the expected caller (RFC 1928 section 4, BIND)."""
        loop = self.link.worker.loop
        addresses = await self._addresses(self.link.worker.config.socks.connect_timeout)
        if addresses is None or self.ended:
            return
        try:
            listener = _listen_toward(addresses[0])
        except OSError as error:
            self._refuse(Reply.GENERAL_FAILURE, f"cannot listen: {error}")
            return
        with listener:
            self.link.send(BindListening(self.conn_id, socket_name(listener)).encode())
            try:
                async with asyncio.timeout(BIND_SECONDS):
                    sock, caller = await self._accept(loop, listener, set(map(str, addresses)))
            except TimeoutError:
                self._refuse(Reply.TTL_EXPIRED, f"nobody called within {BIND_SECONDS:g} s")
                return
        prepare_stream(sock)
        self.destination = caller
        self.link.send(BindAccepted(self.conn_id, caller).encode())
        self.attach(sock)

    async def _accept(
        self, loop: asyncio.AbstractEventLoop, listener: socket.socket, expected: set[str]
    ) -> tuple[socket.socket, HostPort]:
        while True:
            sock, name = await loop.sock_accept(listener)
            if name[0] in expected:
                return sock, HostPort(str(name[0]), int(name[1]))
            # RFC 1928 section 4: the server uses DST to evaluate the BIND request. Anybody else
            # who finds the port is turned away, and the listener stays.
            reset(sock)
            logger.warning(
                "BIND flow %d: refused a caller from %s; expected %s",
                self.conn_id,
                name[0],
                self.destination,
            )

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """End the flow, and the dialling if it is still under way."""
        super().abort(reason, tell_peer=tell_peer)
        self._stop_task()

    def _closed_by_peer(self, reason: int) -> None:
        super()._closed_by_peer(reason)
        self._stop_task()

    def _stop_task(self) -> None:
        task, self.task = self.task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()


def _listen_toward(address: IPAddress) -> socket.socket:
    """Listen on the local address from which `address` is reached, on any free port."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    # Connecting a UDP socket sends nothing; it asks the routing table.
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((str(address), 9))
        local = probe.getsockname()[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        listener.bind((local, 0))
        listener.listen(4)
    except OSError:
        listener.close()
        raise
    return listener
