"""A client's request, from the moment that it is parsed until it is a flow or is refused.

All front ends use this: SOCKS5, SOCKS4, HTTP and the TCP forwards. A front end passes the request
and knows how to answer its client (:class:`Asker`). The rest is the same for all::

    finds the route, and a session of it          up to socks.connect_timeout, again and again if a
                                                  session ends before its answer, or if another peer
                                                  of the route may do better
    asks the gateway's own policy                 before anything else exists for the request
    makes the flow and asks the endpoint for it   early data of the client goes with it
    watches the client                            the request ends when the client leaves

Early data is what a client sends before it has an answer. It is kept until the answer, so that it
can be sent again in another session; the flow transmits it within the endpoint's window.

While the answer is awaited, a reset of the client's connection ends the request at once. So does
its end of file, unless data came before it: then the client has only finished its side (a
half-close), and waits for what comes back. After an end of file, UDP ASSOCIATE and RESOLVE are
still answered if an endpoint was asked, because their answers take little time.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.messages import Answer, ResolveKind
from socks_tunnel.protocol.socks5 import (
    BindRequest,
    ConnectRequest,
    Request,
    ResolveRequest,
    UdpAssociateRequest,
)
from socks_tunnel_workers.frontends import asking
from socks_tunnel_workers.frontends.asking import COMMANDS, Asker, sentence_of
from socks_tunnel_workers.frontends.associating import Associating
from socks_tunnel_workers.frontends.identity import Client
from socks_tunnel_workers.frontends.requests import (
    asks_for_literal,
    named_by,
    opening_of,
    refused_here,
    route_of,
)
from socks_tunnel_workers.frontends.resolving import Question
from socks_tunnel_workers.frontends.watching import ClientWatch
from socks_tunnel_workers.relay.routed_udp import RoutedAssociation
from socks_tunnel_workers.relay.tcp import TcpRelay
from socks_tunnel_workers.relay.udp import GatewayAssociation, Relayed

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients
    from socks_tunnel_workers.relay.session import WorkerSession


class Opening:
    """One request of a client. `sock` is watched here until the answer, and read for early data.

    `own_connection` says whether the client's connection is for this request alone. Such a
    connection does not count besides its flow. `early` is what the client has sent after the
    request, and `started` the time of the loop at which the client was accepted.

    This class has many methods because each event of client, session and flow has its own.
    """

    __slots__ = (
        "_asked",
        "_associating",
        "_clients",
        "_flow",
        "_moving",
        "_over",
        "_own_connection",
        "_request",
        "_route",
        "_sock",
        "_started",
        "_timer",
        "_tried",
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
        self._associating = Associating(clients, request, who, sock)
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
        self._flow: TcpRelay | GatewayAssociation | RoutedAssociation | Question | None = None
        self._route = 0
        self._tried: list[int] = []
        """Numbers of the sessions whose peers did not reach the target."""
        self._moving = False
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
        """The account that limits of the client apply to."""
        return self.who.account

    @property
    def command(self) -> str:
        """The request's name in metrics, logs and audit records."""
        return COMMANDS[type(self._request)]

    @property
    def early_taken(self) -> bool:
        """Whether bytes of the client were read that are not part of its request."""
        return bool(self._watch.early)

    @property
    def asked(self) -> bool:
        """Whether a session with an endpoint was found for the request."""
        return self._asked

    @property
    def relay(self) -> TcpRelay | None:
        """The TCP flow, once there is one."""
        return self._flow if isinstance(self._flow, TcpRelay) else None

    def start(self) -> None:
        """Starts the request. The answer may come before this returns."""
        clients = self._clients
        seconds = clients.settings.config.socks.connect_timeout
        self._timer = clients.loop.call_later(seconds, clients.guard, self.asker, self._timed_out)
        if isinstance(self._request, ResolveRequest) and asks_for_literal(self._request):
            self._stop()
            self.asker.resolved((Answer(0, self._request.host),))
            return
        self._watch.start()
        self._ask()

    # --- asking ---------------------------------------------------------------------------------

    def _ask(self) -> None:
        """Asks an endpoint of the request's route, or waits for a session with one."""
        clients = self._clients
        if isinstance(self._request, UdpAssociateRequest) and not clients.routing.implicit:
            if clients.routing.some:
                self._guarded(self._open_routed_association, None)
            else:
                clients.wait(self)
            return
        if not self._find_route():
            return
        session = clients.routing.choose(self._route, self._tried)
        if session is not None:
            self._guarded(self._open_on, session)
        elif self._allowed("", 0):
            clients.wait(self)

    def try_again(self) -> None:
        """Asks an endpoint if there is a session now, or waits again."""
        self._ask()

    def _find_route(self) -> bool:
        """Finds the request's route. Refuses the request and returns False if there is none."""
        request, routing = self._request, self._clients.routing
        if isinstance(request, UdpAssociateRequest):
            self._route = 0
            return True
        found = route_of(request, routing)
        if found is not None:
            self._route = found.number
            return True
        what = str(named_by(request))
        routing.report_unrouted(what, self.client, self.command)
        self._finish(CloseReason.NOT_ALLOWED, f"no route of this gateway leads to {what}")
        return False

    def _guarded(
        self, call: Callable[[WorkerSession | None], None], session: WorkerSession | None
    ) -> None:
        """Calls `call`, which makes the flow, and refuses the request if a limit is reached."""
        try:
            call(session)
        except RemoteProtocolError as error:
            # This is a limit of this worker, and no fault of the peer: the table is full.
            if session is not None:
                self._clients.report_flow_limit(session, error)
            self._finish(CloseReason.RESOURCE_LIMIT, "this gateway has reached its limit of flows")
        except OSError as error:
            self._clients.report_resource(error)
            self._finish(CloseReason.GENERAL_FAILURE, asking.SHORTAGE)

    def _open_on(self, session: WorkerSession | None) -> None:
        """Opens the flow in a session that can transmit."""
        assert session is not None
        self._asked = True
        match self._request:
            case ConnectRequest() | BindRequest():
                self._open_stream(session, self._request)
            case UdpAssociateRequest():
                self._open_association(session)
            case ResolveRequest():
                self._open_question(session, self._request)

    def _allowed(self, peer: str, conn_id: int) -> bool:
        """Returns whether the gateway's own policy allows the request. Refuses it if not."""
        clients = self._clients
        refused = refused_here(
            clients.settings, clients.counters, self._request, peer=peer, conn_id=conn_id
        )
        if refused is None:
            return True
        self._finish(
            CloseReason.NOT_ALLOWED, f"the policy of this gateway does not allow {refused}"
        )
        return False

    def _open_stream(self, session: WorkerSession, request: ConnectRequest | BindRequest) -> None:
        conn_id = session.allocate()
        if not self._allowed(session.peer, conn_id):
            return
        relay = TcpRelay(
            session,
            conn_id,
            command=self.command,
            client=self.client,
            destination=request.destination,
            opener=self,
            opening=opening_of(request, conn_id),
        )
        self._admit(session, relay)
        self._clients.routing.unanswered[self] = None
        relay.ask()
        if self._watch.early:
            relay.write_early(bytes(self._watch.early))

    def _admit(
        self, session: WorkerSession, flow: TcpRelay | GatewayAssociation | Question
    ) -> None:
        """Takes the flow into the session. Raises :class:`RemoteProtocolError` if it is full."""
        session.admit(flow)
        self._flow = flow
        self._clients.routing.count(self._route, session)
        if self._own_connection and not isinstance(flow, Question):
            self._clients.asked.add(self)

    def _open_association(self, session: WorkerSession) -> None:
        if not self._associating.take_slot():
            self._finish(CloseReason.RESOURCE_LIMIT, asking.TOO_MANY_ASSOCIATIONS)
            return
        association = GatewayAssociation(session, session.allocate(), self)
        try:
            self._admit(session, association)
        except RemoteProtocolError:
            self._associating.free_slot()
            raise
        try:
            self._associating.bind(association.client_socket)
        except OSError:
            self._over = True  # the caller answers the client, and not the association's end
            association.abort(CloseReason.RESOURCE_LIMIT, tell_peer=False)
            raise
        association.ask()

    def _open_routed_association(self, _: WorkerSession | None) -> None:
        if not self._associating.take_slot():
            self._finish(CloseReason.RESOURCE_LIMIT, asking.TOO_MANY_ASSOCIATIONS)
            return
        self._flow = association = self._associating.routed(self)
        self._asked = True
        association.start()

    def _open_question(self, session: WorkerSession, request: ResolveRequest) -> None:
        if "resolve" not in session.terms.features:
            self._finish(CloseReason.COMMAND_NOT_SUPPORTED, "the endpoint does not resolve names")
            return
        kind = ResolveKind.NAME if request.reverse else ResolveKind.ADDRESSES
        conn_id = session.allocate()
        if not self._allowed(session.peer, conn_id):
            return
        question = Question(session, conn_id, self, kind, request.host)
        self._admit(session, question)
        self._clients.routing.unanswered[self] = None
        question.ask()

    # --- answers of the flow --------------------------------------------------------------------

    def opened(self, bound: HostPort) -> None:
        """Tells the client that the endpoint has connected, and passes its socket to the flow."""
        relay = self._flow
        assert isinstance(relay, TcpRelay)
        self._clients.routing.opened(self._route, relay.session)
        self._watch.hand_over()
        self._stop()
        self._over = True
        self._observe()
        if self.asker.opened(bound):
            relay.attach(self._sock)
        else:
            relay.abort(CloseReason.RESET)

    def listening(self, bound: HostPort) -> None:
        """Tells the client where the endpoint listens for the caller of a BIND."""
        self._cancel_timer()  # the endpoint limits the wait for the caller
        # The client knows this endpoint's address, so no other endpoint can be asked any more.
        self._clients.routing.unanswered.pop(self, None)
        if not self.asker.listening(bound):
            self.cancel()

    def failed(self, reason: int) -> None:
        """Asks another endpoint or refuses the request, because the flow ended unopened."""
        flow, self._flow = self._flow, None
        self._clients.asked.discard(self)
        self._clients.routing.unanswered.pop(self, None)
        if self._over or self._moving:
            return
        if isinstance(flow, TcpRelay | Question) and self._blame(flow.session, reason):
            self._ask()
            return
        if reason == CloseReason.RESUME_FAILED:
            # The session has ended before the endpoint answered: the next session is asked.
            self._ask()
            return
        self._finish(reason, sentence_of(self._request, reason))

    def _blame(self, session: WorkerSession, reason: int) -> bool:
        """Notes that a peer did not reach the target; returns whether to ask another peer."""
        request, routing = self._request, self._clients.routing
        if not isinstance(request, ConnectRequest) or self._timer is None:
            return False
        if not routing.failed(self._route, session, request.destination.host, reason):
            return False
        self._tried.append(session.number)
        return routing.another(self._route, self._tried) is not None

    def reconsider(self) -> None:
        """Asks another endpoint, if the one that was asked is passed over by now."""
        flow = self._flow
        if not isinstance(flow, TcpRelay | Question):
            return
        better = self._clients.routing.better(self._route, flow.session)
        if better is None or better.number in self._tried:
            return
        self._moving = True
        flow.abort(CloseReason.RESET)
        self._moving = False
        self._ask()

    def associated(self, association: Relayed) -> None:
        """Tells the client the address of the relay, because the endpoint has answered."""
        self._cancel_timer()
        self._clients.asked.discard(self)
        self._observe()
        # RFC 1928 section 6: "A UDP association terminates when the TCP connection that the UDP
        # ASSOCIATE request arrived on terminates."
        if not self.asker.associated(association.bound) or self._watch.eof:
            association.abort(CloseReason.ORDERLY)

    def association_ended(self, reason: int, *, opened: bool) -> None:
        """Closes the client's connection, or refuses the request if it was not opened yet."""
        if isinstance(self._flow, RoutedAssociation):
            self._clients.relays.discard(self._flow)
        self._associating.free_slot()
        if not opened:
            self.failed(reason)
            return
        self._flow = None
        if not self._over:
            self._over = True
            self._stop()
            self.asker.close()

    def answered(self, reason: int, answers: tuple[Answer, ...]) -> None:
        """Tells the client the endpoint's answer to a name question, or why there is none."""
        if reason != CloseReason.ORDERLY:
            self.failed(reason)
            return
        flow, self._flow = self._flow, None
        if not self._over:
            if isinstance(flow, Question):
                self._clients.routing.opened(self._route, flow.session)
            self._over = True
            self._stop()
            self.asker.resolved(answers)

    # --- the client (Watcher) -------------------------------------------------------------------

    def said(self, data: bytes) -> None:
        """Passes early data to the flow, which transmits it within its window."""
        if isinstance(self._flow, TcpRelay):
            self._flow.write_early(data)

    def ended_its_side(self) -> None:
        """Takes the client's end of file (see the top of this module)."""
        flow = self._flow
        if isinstance(flow, GatewayAssociation | RoutedAssociation) and flow.opened:
            flow.abort(CloseReason.ORDERLY)
        elif not self._watch.early and not isinstance(flow, GatewayAssociation | Question):
            self._give_up(CloseReason.RESET)
            self._finish(CloseReason.GENERAL_FAILURE, "the client has ended its side")
        # Else the client may still want the answer: only a reset ends the request.

    def left(self) -> None:
        """Ends the request, because the client has reset its connection."""
        flow = self._flow
        open_association = isinstance(flow, GatewayAssociation | RoutedAssociation) and flow.opened
        self._give_up(CloseReason.ORDERLY if open_association else CloseReason.RESET)
        self.asker.close()

    def cancel(self) -> None:
        """Ends the request without an answer. The front end closes the socket."""
        if not self._over:
            self._give_up(CloseReason.RESET)

    def _give_up(self, reason: CloseReason) -> None:
        self._stop()
        self._over = True
        flow, self._flow = self._flow, None
        if isinstance(flow, RoutedAssociation):
            self._clients.relays.discard(flow)
        if flow is not None and not flow.ended:
            flow.abort(reason)

    # --- the end --------------------------------------------------------------------------------

    def _timed_out(self) -> None:
        self._timer = None
        flow = self._flow
        if isinstance(flow, TcpRelay) and flow.session.open_to_send:
            # The link to the endpoint works, so it is the endpoint that does not reach the target.
            host = flow.destination.host if flow.destination is not None else ""
            self._clients.routing.failed(self._route, flow.session, host, CloseReason.TTL_EXPIRED)
        if flow is not None:
            flow.abort(CloseReason.TTL_EXPIRED)
        else:
            self._finish(CloseReason.GENERAL_FAILURE, "there is no link to an endpoint")

    def _finish(self, reason: int, sentence: str) -> None:
        self._stop()
        self._over = True
        self.asker.failed(reason, sentence)

    def _stop(self) -> None:
        """Stops the timer, the wait for a session, and the watch of the client."""
        self._cancel_timer()
        self._watch.stop()
        self._clients.stop_waiting(self)
        self._clients.asked.discard(self)
        self._clients.routing.unanswered.pop(self, None)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _observe(self) -> None:
        clients = self._clients
        clients.metrics.connect_seconds.observe(clients.loop.time() - self._started)
