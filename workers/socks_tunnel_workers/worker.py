"""The worker: builds its parts, and passes each control message to the part that deals with it.

This file is long because each control message of the supervisor has its handler here.

A worker owns its flows alone, and talks to nobody but the supervisor. No other part imports this
module. It puts the parts together::

    frontends (gateway) --> relay <-- targets (endpoint)        services: counters, accounts, …
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Final

from socks_tunnel.ipc.stream import Channel
from socks_tunnel.ops import audit_file
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    Ask,
    Attach,
    ChildHello,
    ChildReady,
    Configure,
    Control,
    Credit,
    Detach,
    Drain,
    Drained,
    HandedOver,
    HandOver,
    IpcPing,
    IpcPong,
    Kill,
    NewFlows,
    PeerRows,
    Probe,
    Probed,
    Reload,
    SessionEnded,
    SessionOpened,
    Settle,
    Settled,
    Shutdown,
)
from socks_tunnel.protocol.settings import WorkerSettings
from socks_tunnel_workers.draining import Draining
from socks_tunnel_workers.frontends.accepting import Listener
from socks_tunnel_workers.frontends.clients import Clients
from socks_tunnel_workers.frontends.forward import TcpForwardSession, UdpForward
from socks_tunnel_workers.frontends.routing import Routing
from socks_tunnel_workers.frontends.socks import SocksSession
from socks_tunnel_workers.handover import Heirs, Inheritance, write_state
from socks_tunnel_workers.operators import Answers
from socks_tunnel_workers.relay.memory import MemoryRelief
from socks_tunnel_workers.relay.probe import ProbeFlow
from socks_tunnel_workers.relay.session import (
    Flow,
    RelayServices,
    SessionMessages,
    WorkerSession,
)
from socks_tunnel_workers.services import Account, Counters, Notices, Settings
from socks_tunnel_workers.targets.access import Access
from socks_tunnel_workers.targets.admission import Targets
from socks_tunnel_workers.targets.resolver import Resolver
from socks_tunnel_workers.upkeep import Upkeep

logger = logging.getLogger(__name__)

SETTLE_STEP: Final = 0.02
"""Seconds between two looks at whether all clients are served, before the program is replaced."""

EXIT_CONFIG: Final = 78
"""Exit status that tells the supervisor not to try again (sysexits.h, EX_CONFIG)."""


def _no_replacement(state: int, stream: int) -> None:
    """Raises: this process was started without a way to replace its program."""
    raise LocalProtocolError(
        f"nobody takes over the state in descriptor {state} and the stream in descriptor {stream}"
    )


class Worker(Channel):
    """One worker process. As a :class:`Channel` it is its end of the IPC stream.

    `on_exit` is called once, with the exit status, when the worker is done. `listening` has the
    listening sockets by the descriptor numbers of :class:`Configure`. `replace` replaces the
    program; it is called with the descriptors of the state and of the IPC stream. `inheritance` is
    the state that the previous program of this process has left.

    This class has many methods because each control message of the supervisor has one.
    """

    def __init__(
        self,
        index: int,
        listening: Mapping[int, socket.socket],
        on_exit: Callable[[int], None],
        *,
        replace: Callable[[int, int], None] = _no_replacement,
        inheritance: Inheritance | None = None,
    ) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.index = index
        self.metrics = Metrics()
        self.counters = Counters()
        self.notices = Notices(self.loop.time)
        self.resolver = Resolver(warn=self.notices.warn, metrics=self.metrics)
        self.sessions: dict[int, WorkerSession] = {}
        self.hand_messages_to(SessionMessages(self.sessions).take)
        self.draining = Draining(self.loop, self.sessions, lambda: self.send_control(0, Drained()))
        self.settings: Settings
        self.memory: Account
        self.clients: Clients
        self._services: RelayServices
        self.targets: Targets
        self.upkeep: Upkeep
        self._listening = dict(listening)
        self._listeners: list[Listener | UdpForward] = []
        self._answers = Answers(
            self.loop,
            partial(self.send_control, 0),
            self.flows,
            lambda: self.upkeep.status_row(),  # noqa: PLW0108 - there is none yet
            lambda: self.upkeep.waiting_flows(),  # noqa: PLW0108
        )
        self._count = 1
        self._configured = False
        self._on_exit = on_exit
        self._replace = replace
        self._inheritance = inheritance
        self._exited = False

    # --- IPC ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Says hello to the supervisor."""
        super().connection_made(transport)
        self.send_control(0, ChildHello(os.getpid()))

    def on_control(self, session: int, message: Control) -> None:
        """Takes a control message of the supervisor."""
        match message:
            case IpcPing(number=number):
                # The answer comes from the loop that moves the bytes, so a stuck loop is noticed.
                self.send_control(0, IpcPong(number))
            case Configure():
                self._configure(message)
            case Reload(config=fields):
                self.settings.apply(WorkerSettings.from_map(fields))
                self.clients.routing.reset()  # the supervisor sends the new routes' table next
                self._apply_limits()
                if self.settings.config.role == "endpoint":
                    self.targets.reload()
            case SessionOpened(peer=peer):
                self._session_opened(session, peer)
            case NewFlows(targets=targets, beside=beside):
                self.clients.set_targets(targets, beside)
            case Ask():
                self._answers.answer(message)
            case Kill():
                self._answers.kill(message, self.sessions.values())
            case Drain():
                self.drain()
            case Settle(seconds=seconds):
                self._settle(seconds)
            case HandOver():
                self._hand_over()
            case Shutdown():
                self._shutdown()
            case _:
                self._session_control(session, message)

    def _session_control(self, number: int, message: Control) -> None:
        session = self.sessions.get(number)
        match message:
            case Credit():
                if session is not None:
                    session.grant(message)
            case Attach():
                if session is not None:
                    session.attach(message)
                    self.clients.wake()  # a link without a resume transmits at once
            case PeerRows(rows=rows, last=last):
                if session is not None:
                    session.resumed([(a, b, c, d) for a, b, c, d in rows], last=last)
                    self.clients.wake()
            case Detach():
                if session is not None:
                    session.detach()
            case Probe():
                self._probe(number, message)
            case SessionEnded(reason=reason):
                self._session_ended(number, reason)
            case _:
                raise RemoteProtocolError(
                    f"a worker does not take the control message '{message.OP}'", kind="ipc-control"
                )

    def on_bug(self, session: int, message: Control | None, error: Exception) -> None:
        """Ends the flows of the session. Raises `error` if the worker has no configuration yet.

        Such a worker can do nothing, so it must end.
        """
        self.counters.count("protocol_errors_total", "bug")
        if not self._configured or isinstance(message, Configure):
            raise error
        if (owner := self.sessions.get(session)) is not None:
            owner.end(CloseReason.GENERAL_FAILURE, tell_peer=True)

    def on_closed(self, error: Exception | None) -> None:
        """Ends the worker: without the supervisor it cannot do anything."""
        if error is not None:
            logger.error(
                "worker %d lost its connection to the supervisor: %s; it ends, and so do its flows",
                self.index,
                error,
            )
        status = 0 if self.draining.begun and error is None else 1
        self._release()
        self._exit(status)

    # --- configuration --------------------------------------------------------------------------

    def _configure(self, message: Configure) -> None:
        self._count = message.count
        try:
            self.settings = Settings(WorkerSettings.from_map(message.config))
        except ValueError as error:
            # The supervisor has checked it. So the two programs differ in their version, and a
            # restart of the worker would not help.
            logger.error(  # noqa: TRY400 - the sentence says it all
                "worker %d cannot use the configuration from the supervisor: %s; "
                "restart the service to mend this",
                self.index,
                error,
            )
            self._release()
            self._exit(EXIT_CONFIG)
            return
        self._build()
        self._apply_limits()
        for number, (fd, kind, host, port) in enumerate(message.listeners):
            # An association belongs to one worker, so only one worker reads a UDP forward's socket.
            if kind == "forward-udp" and number % self._count != self.index:
                continue
            target = HostPort(host, port) if host else None
            accepting = self._listener(self._listening[fd], kind, target)
            self._listeners.append(accepting)
        self._configured = True
        if self._inheritance is not None:
            self._inherit(self._inheritance)
            self._inheritance = None
        for accepting in self._listeners:
            accepting.start()
        self.upkeep.start()
        self.send_control(0, ChildReady())

    def _build(self) -> None:
        """Builds the parts that need the configuration."""
        config = self.settings.config
        self.memory = Account(config.limits.memory_per_worker)
        relief = MemoryRelief(
            self.memory, self.sessions.values(), self.notices, self.counters, self.loop.time
        )
        self._services = RelayServices(
            channel=self,
            loop=self.loop,
            settings=self.settings,
            counters=self.counters,
            notices=self.notices,
            memory=self.memory,
            metrics=self.metrics,
            flow_left=self.draining.check,
            relieve=relief.relieve,
        )
        self.targets = Targets(
            settings=self.settings,
            resolver=self.resolver,
            access=Access(
                self.resolver,
                self.counters.count,
                lambda: self.settings.config.targets.search,
            ),
            warn=self.notices.warn,
            flows=self.flows,
            full=self._holds_enough,
        )
        self.clients = Clients(
            self.loop,
            self.settings,
            self.counters,
            self.notices,
            self.metrics,
            self.memory,
            Routing(self.settings, self.sessions, self.counters, self.notices, self.send_control),
            self._holds_enough,
        )
        self.upkeep = Upkeep(
            self.loop,
            self.settings,
            self.sessions,
            self.clients,
            self.counters,
            self.notices,
            self.metrics,
            self.memory,
            lambda: self.buffered,
        )

    def _apply_limits(self) -> None:
        limits = self.settings.config.limits
        self.memory.limit = limits.memory_per_worker
        self.clients.associations.limit = limits.associations_per_client
        for session in self.sessions.values():
            session.flows.resize(limits.flows_per_worker)
        ops_logging.set_level(self.settings.config.log.level)
        try:
            audit_file.use(self.settings.config.audit.file, f"worker-{self.index}")
        except OSError as error:  # the supervisor could open it when it checked
            logger.error(  # noqa: TRY400 - the sentence says it all
                "worker %d cannot write its audit records to a file: %s; they are in the log only",
                self.index,
                error,
            )

    def _listener(
        self, sock: socket.socket, kind: str, target: HostPort | None
    ) -> Listener | UdpForward:
        clients = self.clients
        if target is None:
            return Listener(clients, sock, partial(SocksSession, clients))
        if kind == "forward-udp":
            return UdpForward(clients, sock, target)
        return Listener(
            clients, sock, lambda client, name: TcpForwardSession(clients, client, name, target)
        )

    # --- hand-over ------------------------------------------------------------------------------

    def _settle(self, seconds: float) -> None:
        """Takes no new clients. Those whose flows are not open yet have so many seconds."""
        for listener in self._listeners:
            listener.stop()
        self._check_settled(self.loop.time() + seconds)

    def _check_settled(self, deadline: float) -> None:
        self.clients.close_idle()
        if not self.clients.opening or self.loop.time() >= deadline:
            self.send_control(0, Settled(len(self.clients.opening)))
        elif not self._exited:
            self.loop.call_later(SETTLE_STEP, self._check_settled, deadline)

    def _hand_over(self) -> None:
        """Writes the state, tells the supervisor, and replaces the program.

        The program is replaced once everything sent before has left for the supervisor.
        """
        if self.clients.opening:
            logger.warning(
                "the program is replaced while %d clients of worker %d wait for an answer: "
                "closing their connections",
                len(self.clients.opening),
                self.index,
            )
        self.clients.give_up()
        for session in self.sessions.values():
            session.detach()
        self.upkeep.flush_metrics()
        self.metrics.flush()
        try:
            fd, flows = write_state(self.sessions, self.counters, self.clients.relays)
        except (OSError, ValueError) as error:
            # The supervisor waits for an answer. When this process has ended it starts a new one.
            logger.error(  # noqa: TRY400 - the sentence says it all
                "worker %d cannot hand its flows over to the new program: %s; it ends, and so do "
                "its flows",
                self.index,
                error,
            )
            self._exit(1)
            return
        self.send_control(0, HandedOver(flows))
        self.leave(lambda: self._replace(fd, self.descriptor))

    def _inherit(self, inheritance: Inheritance) -> None:
        """Restores the flows that the previous program has left."""
        endpoint = self.settings.config.role == "endpoint"
        forwards = [each for each in self._listeners if isinstance(each, UdpForward)]
        heirs = Heirs(
            self.counters, self.clients, self.targets.services if endpoint else None, forwards
        )
        problem = inheritance.restore(heirs, self._session_opened)
        if problem is not None:
            logger.error(
                "worker %d cannot read the state that the previous program has left: %s; "
                "its flows end",
                self.index,
                problem,
            )
            for session in self.sessions.values():
                session.end(CloseReason.RESUME_FAILED, tell_peer=False)
            self.sessions.clear()
        else:
            logger.info(
                "worker %d goes on with %d flows of the previous program; %d flows were lost",
                self.index,
                inheritance.flows,
                inheritance.lost,
            )

    # --- sessions -------------------------------------------------------------------------------

    def _session_opened(self, number: int, peer: str) -> WorkerSession:
        if number in self.sessions:  # the previous program has handed it over
            return self.sessions[number]
        endpoint = self.settings.config.role == "endpoint"
        session = WorkerSession(
            self._services,
            number,
            peer,
            open_from_peer=self.targets.open if endpoint else None,
            index=self.index,
        )
        session.draining = self.draining.begun
        self.sessions[number] = session
        return session

    def _probe(self, number: int, message: Probe) -> None:
        """Finds out whether the peer reaches a target. Tells the supervisor in any case."""

        def tell(reason: int) -> None:
            self.send_control(0, Probed(message.number, reason))

        session = self.sessions.get(number)
        if session is None or not session.open_to_send or self._holds_enough():
            tell(CloseReason.RESOURCE_LIMIT)
            return
        destination = HostPort(message.host, message.port)
        probe = ProbeFlow(session, session.allocate(), destination, tell)
        try:
            session.admit(probe)
        except RemoteProtocolError as error:
            self.clients.report_flow_limit(session, error)
            tell(CloseReason.RESOURCE_LIMIT)
            return
        probe.ask()

    def _session_ended(self, number: int, reason: str) -> None:
        session = self.sessions.pop(number, None)
        if session is None:
            return
        flows = len(session.flows)
        if flows:
            logger.info(
                "the session with peer %s is over (%s): closing its %d flows in this worker",
                session.peer,
                reason,
                flows,
            )
        self.clients.routing.forget(session)
        session.end(CloseReason.RESUME_FAILED, tell_peer=False)
        self.draining.check()

    # --- flows ----------------------------------------------------------------------------------

    def _holds_enough(self) -> bool:
        """Returns whether this worker holds as many flows and handshakes as it may."""
        active = self.counters.active
        held = active["tcp"] + active["udp"] + self.clients.handshakes + len(self.clients.relays)
        return held >= self.settings.config.limits.flows_per_worker

    def flows(self) -> Iterator[Flow]:
        """Yields all flows of all sessions."""
        for session in self.sessions.values():
            yield from session.flows

    # --- the end --------------------------------------------------------------------------------

    def drain(self) -> None:
        """Accepts nothing new, and tells the supervisor when the last flow has ended."""
        for session in self.sessions.values():
            session.draining = True
        if self._configured:
            self.clients.drain()
        for listener in self._listeners:
            listener.stop()
        self.draining.begin(self.clients if self._configured else None)

    def _shutdown(self) -> None:
        """Closes everything now and exits with status 0."""
        self._release()
        if self._configured:
            self.upkeep.flush_metrics()
        self.close()  # this sends what waits; then on_closed ends the process

    def _release(self) -> None:
        """Ends all flows and handshakes, and closes the listening sockets of this process."""
        self.draining.end()
        for listener in self._listeners:
            listener.stop()
        for session in self.sessions.values():
            session.end(CloseReason.SHUTTING_DOWN, tell_peer=True)
        if self._configured:
            self.clients.close()
        for sock in self._listening.values():
            sock.close()

    def _exit(self, status: int) -> None:
        if self._exited:
            return
        self._exited = True
        self.resolver.close()
        if self._configured:
            self.upkeep.stop()
            self.clients.shutdown()
        self._on_exit(status)
