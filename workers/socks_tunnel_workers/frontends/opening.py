"""A client's request, from the moment that it is understood until it is a flow or is refused.

All front ends end here: SOCKS5, SOCKS4, HTTP and the TCP forwards. Each of them says what its
client wants and how to answer it (:class:`Asker`); the rest is the same for all, and happens here
alone::

    waits for a session that takes new flows      up to socks.connect_timeout, again and again if a
                                                  session ends before its answer
    asks the gateway's own policy                 before anything else exists for the request
    makes the flow and asks the endpoint for it   with what the client said too early
    watches the client                            whoever leaves is not dialled for

Early data is what a client sends before it got an answer. It is kept until the answer, so that it
can be sent again in another session; the flow transmits it within the endpoint's window.

While the answer is awaited, a reset of the client's connection ends the request at once. So does
its end of file, unless data came before it: then the client has only finished its side (a
half-close), and waits for what comes back. What was asked of the endpoint already and takes no time
(UDP ASSOCIATE, RESOLVE) is still answered.
"""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING, Final

from socks_tunnel.protocol.addresses import UNSPECIFIED, HostPort, parse_ip
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.ice_urls import parse_udp_ports
from socks_tunnel.protocol.messages import (
    Answer,
    Bind,
    OpenConnection,
    ResolveKind,
)
from socks_tunnel.protocol.policy import Verdict
from socks_tunnel.protocol.socks5 import (
    BindRequest,
    ConnectRequest,
    Request,
    ResolveRequest,
    UdpAssociateRequest,
)
from socks_tunnel_workers.frontends.asking import COMMANDS, Asker, sentence_of
from socks_tunnel_workers.frontends.identity import Client, plain_ip
from socks_tunnel_workers.frontends.resolving import Question
from socks_tunnel_workers.frontends.watching import ClientWatch
from socks_tunnel_workers.relay.local_policy import allowed_here
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.relay.udp import GatewayAssociation

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients
    from socks_tunnel_workers.relay.session import WorkerSession
    from socks_tunnel_workers.services import QuotaSlot

LOOPBACK: Final = "127.0.0.1"
"""Where the UDP relays of clients on Unix sockets are."""


class Opening:
    """One request of a client. `sock` is watched here until the answer, and read for early data.

    `own_connection` says whether it is the only thing that the client's connection is for: then it
    does not count beside its flow.

    This class has many methods because each event of client, session and flow has its own.
    """

    __slots__ = (
        "_asked",
        "_clients",
        "_flow",
        "_over",
        "_own_connection",
        "_request",
        "_slot",
        "_sock",
        "_started",
        "_timer",
        "_watch",
        "asker",
        "who",
    )

    def __init__(
        self,
        clients: Clients,
        asker: Asker,
        request: Request,
        who: Client,
        sock: socket.socket,
        *,
        early: bytes = b"",
        started: float | None = None,
        own_connection: bool = True,
    ) -> None:
        self._own_connection = own_connection
        self._clients = clients
        self.asker = asker
        self._request = request
        self.who = who
        self._sock = sock
        self._watch = ClientWatch(
            clients.loop,
            clients.memory,
            sock,
            self,
            early=early,
            keep=isinstance(request, ConnectRequest | BindRequest),
            guard=partial(clients.guard, asker),
        )
        self._started = clients.loop.time() if started is None else started
        self._flow: TcpRelay | GatewayAssociation | Question | None = None
        self._slot: QuotaSlot | None = None
        self._asked = False
        self._over = False
        self._timer: asyncio.TimerHandle | None = None

    # --- what others see ------------------------------------------------------------------------

    @property
    def client(self) -> str:
        """The client's name in tables and logs."""
        return self.who.name

    @property
    def connection(self) -> socket.socket:
        """The client's connection."""
        return self._sock

    @property
    def account(self) -> str:
        """What the client's associations are counted under."""
        return self.who.account

    @property
    def command(self) -> str:
        """What is asked for, in a word for metrics."""
        return COMMANDS[type(self._request)]

    @property
    def early_taken(self) -> bool:
        """Whether bytes of the client were read that are not part of its request."""
        return bool(self._watch.early)

    @property
    def asked(self) -> bool:
        """Whether an endpoint was asked, by this gateway's leave."""
        return self._asked

    @property
    def relay(self) -> TcpRelay | None:
        """The TCP flow, once there is one."""
        return self._flow if isinstance(self._flow, TcpRelay) else None

    def start(self) -> None:
        """Begins. The answer may come before this returns."""
        clients = self._clients
        seconds = clients.settings.config.socks.connect_timeout
        self._timer = clients.loop.call_later(seconds, clients.guard, self.asker, self._timed_out)
        if isinstance(self._request, ResolveRequest) and self._is_literal(self._request):
            self._stop()
            self.asker.resolved((Answer(0, self._request.host),))
            return
        self._watch.start()
        self._ask()

    # --- asking ---------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Asks on the session that takes new flows, or waits for one."""
        session = self._clients.target
        if session is not None:
            self.open_on(session)
        elif self._allowed("", 0):
            self._clients.wait(self)

    def open_on(self, session: WorkerSession) -> None:
        """Opens the flow on a session that transmits."""
        self._asked = True
        try:
            match self._request:
                case ConnectRequest(destination=destination):
                    opening = OpenConnection(0, destination.host, destination.port)
                    self._open_stream(session, destination, opening)
                case BindRequest(destination=destination):
                    self._open_stream(session, destination, Bind(0, destination))
                case UdpAssociateRequest():
                    self._open_association(session)
                case ResolveRequest():
                    self._open_question(session, self._request)
        except RemoteProtocolError as error:
            # Our own limit, not the peer's fault: the table is full.
            self._clients.report_flow_limit(session, error)
            self._finish(CloseReason.RESOURCE_LIMIT, "this gateway holds as much as it may")
        except OSError as error:
            self._clients.report_resource(error)
            self._finish(CloseReason.GENERAL_FAILURE, "this gateway is short of resources")

    def _allowed(self, peer: str, conn_id: int) -> bool:
        """Asks the gateway's own policy, and refuses the request if it says no.

        Without a peer only a refusal is recorded: the request is asked about again when there is a
        session, by the policy of that time.
        """
        request = self._request
        policy = self._clients.settings.policies.default
        if policy is None or isinstance(request, UdpAssociateRequest):
            return True
        if isinstance(request, ResolveRequest):
            destination = HostPort(request.host, policy.some_port)
        else:
            destination = request.destination
        if not peer and policy.check(destination).verdict is not Verdict.DENIED:
            return True
        if allowed_here(
            self._clients.counters,
            policy,
            destination,
            peer=peer,
            conn_id=conn_id,
            command=self.command,
        ):
            return True
        self._finish(
            CloseReason.NOT_ALLOWED,
            f"the policy of this gateway does not allow {destination}",
        )
        return False

    def _open_stream(
        self, session: WorkerSession, destination: HostPort, opening: OpenConnection | Bind
    ) -> None:
        conn_id = session.allocate()
        if not self._allowed(session.peer, conn_id):
            return
        if isinstance(opening, Bind):
            message = Bind(conn_id, opening.caller).encode()
        else:
            message = OpenConnection(conn_id, opening.host, opening.port).encode()
        relay = TcpRelay(
            session,
            conn_id,
            command=self.command,
            client=self.client,
            destination=destination,
            opener=self,
            opening=message,
        )
        self._admit(session, relay)
        relay.ask()
        if self._watch.early:
            relay.write_early(bytes(self._watch.early))

    def _admit(
        self, session: WorkerSession, flow: TcpRelay | GatewayAssociation | Question
    ) -> None:
        """Takes the flow into the session. Raises :class:`RemoteProtocolError` if it is full."""
        session.admit(flow)
        self._flow = flow
        if self._own_connection and not isinstance(flow, Question):
            self._clients.asked.add(self)

    def _open_association(self, session: WorkerSession) -> None:
        self._slot = self._clients.take_association(self.who.account)
        if self._slot is None:
            self._finish(CloseReason.RESOURCE_LIMIT, "this client has as many as it may")
            return
        association = GatewayAssociation(session, session.allocate(), self)
        try:
            self._admit(session, association)
        except RemoteProtocolError:
            self._free_slot()
            raise
        try:
            self._bind(association)
        except OSError:
            self._over = True  # the caller says why, not the association's end
            association.abort(CloseReason.RESOURCE_LIMIT, tell_peer=False)
            raise
        association.ask()

    def _bind(self, association: GatewayAssociation) -> None:
        """Binds the association's relay. Raises :class:`OSError`."""
        socks = self._clients.settings.config.socks
        ports = parse_udp_ports(socks.udp_ports)
        if self._sock.family != socket.AF_UNIX:
            local = self._sock.getsockname()
            host = plain_ip(str(local[0]))
            scope = int(local[3]) if len(local) > 3 and ":" in host else 0
            association.bind(
                host, scope, client_ip=self.who.account, ports=ports,
                told=socks.udp_address,
            )  # fmt: skip
            return
        # A client on a Unix socket is on this machine, and so is its relay. Who may connect to the
        # socket is the machine's decision, and loopback is open to all: a client that says which
        # port it will send from (RFC 1928 section 4) is believed, and nobody gets there first.
        association.bind(LOOPBACK, 0, client_ip=LOOPBACK, ports=ports)
        assert isinstance(self._request, UdpAssociateRequest)
        hint = self._request.hint
        if hint is not None and hint.port and hint.host in {LOOPBACK, UNSPECIFIED.host}:
            association.pinned = LOOPBACK, hint.port

    def _open_question(self, session: WorkerSession, request: ResolveRequest) -> None:
        if "resolve" not in session.terms.features:
            self._finish(CloseReason.COMMAND_NOT_SUPPORTED, "the endpoint resolves no names")
            return
        kind = ResolveKind.NAME if request.reverse else ResolveKind.ADDRESSES
        conn_id = session.allocate()
        if not self._allowed(session.peer, conn_id):
            return
        question = Question(session, conn_id, self, kind, request.host)
        self._admit(session, question)
        question.ask()

    @staticmethod
    def _is_literal(request: ResolveRequest) -> bool:
        """Whether it asks for the address of an address, which takes no tunnel to tell."""
        return not request.reverse and parse_ip(request.host) is not None

    # --- answers of the flow --------------------------------------------------------------------

    def opened(self, bound: HostPort) -> None:
        """The endpoint has really connected: only now the client is told so."""
        relay = self._flow
        assert isinstance(relay, TcpRelay)
        self._watch.hand_over()
        self._stop()
        self._over = True
        self._observe()
        if self.asker.opened(bound):
            relay.attach(self._sock)
        else:
            relay.abort(CloseReason.RESET)

    def listening(self, bound: HostPort) -> None:
        """The endpoint listens for the caller of a BIND, who may take its time."""
        self._cancel_timer()
        if not self.asker.listening(bound):
            self.cancel()

    def failed(self, reason: int) -> None:
        """The flow was closed before it was opened."""
        self._flow = None
        self._clients.asked.discard(self)
        if self._over:
            return
        if reason == CloseReason.RESUME_FAILED:
            # Its session is over, and the endpoint has not answered: the next one is asked.
            self._ask()
            return
        self._finish(reason, sentence_of(self._request, reason))

    def associated(self, association: GatewayAssociation) -> None:
        """The endpoint has answered: the client is told the relay's concrete address."""
        self._cancel_timer()
        self._clients.asked.discard(self)
        self._observe()
        # RFC 1928 section 6: "A UDP association terminates when the TCP connection that the UDP
        # ASSOCIATE request arrived on terminates."
        if not self.asker.associated(association.bound) or self._watch.eof:
            association.abort(CloseReason.ORDERLY)

    def association_ended(self, reason: int, *, opened: bool) -> None:
        """The association is over; the connection that it was asked on ends with it."""
        self._free_slot()
        if not opened:
            self.failed(reason)
            return
        self._flow = None
        if not self._over:
            self._over = True
            self._stop()
            self.asker.close()

    def answered(self, reason: int, answers: tuple[Answer, ...]) -> None:
        """The endpoint has answered a question."""
        if reason != CloseReason.ORDERLY:
            self.failed(reason)
            return
        self._flow = None
        if not self._over:
            self._over = True
            self._stop()
            self.asker.resolved(answers)

    # --- the client (Watcher) -------------------------------------------------------------------

    def said(self, data: bytes) -> None:
        """Early data has come; the flow transmits it within its window."""
        if isinstance(self._flow, TcpRelay):
            self._flow.write_early(data)

    def ended_its_side(self) -> None:
        """The client's end of file came before the answer, or ends its association."""
        flow = self._flow
        if isinstance(flow, GatewayAssociation) and flow.opened:
            flow.abort(CloseReason.ORDERLY)
        elif not self._watch.early and not isinstance(flow, GatewayAssociation | Question):
            self._give_up(CloseReason.RESET)
            self._finish(CloseReason.GENERAL_FAILURE, "the client has ended its side")
        # Else the answer is still wanted, unless a reset follows.

    def left(self) -> None:
        """The client has reset its connection: nothing is done for it any more."""
        open_association = isinstance(self._flow, GatewayAssociation) and self._flow.opened
        self._give_up(CloseReason.ORDERLY if open_association else CloseReason.RESET)
        self.asker.close()

    def cancel(self) -> None:
        """Ends the request without an answer: the front end closes the socket itself."""
        if not self._over:
            self._give_up(CloseReason.RESET)

    def _give_up(self, reason: CloseReason) -> None:
        self._stop()
        self._over = True
        flow, self._flow = self._flow, None
        if flow is not None and not flow.ended:
            flow.abort(reason)

    # --- the end --------------------------------------------------------------------------------

    def _timed_out(self) -> None:
        self._timer = None
        if self._flow is not None:
            self._flow.abort(CloseReason.TTL_EXPIRED)
        else:
            self._finish(CloseReason.GENERAL_FAILURE, "there is no link to an endpoint")

    def _finish(self, reason: int, sentence: str) -> None:
        self._stop()
        self._over = True
        self.asker.failed(reason, sentence)

    def _stop(self) -> None:
        """Stops waiting and watching, and forgets the early data: the flow has it."""
        self._cancel_timer()
        self._watch.stop()
        self._clients.stop_waiting(self)
        self._clients.asked.discard(self)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _free_slot(self) -> None:
        if self._slot is not None:
            self._slot.end()
            self._slot = None

    def _observe(self) -> None:
        clients = self._clients
        clients.metrics.connect_seconds.observe(clients.loop.time() - self._started)
