"""The endpoint's room: opens the flows that a gateway asks for, and holds them to the policy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final, Protocol

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort, parse_ip
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError, Reply
from socks_tunnel.protocol.messages import (
    ANSWERS_MAX,
    Answer,
    Bind,
    OpenConnection,
    Resolve,
    Resolved,
    ResolveKind,
    UdpAssociate,
)
from socks_tunnel.protocol.policies import PolicySet
from socks_tunnel.protocol.policy import Policy, Verdict
from socks_tunnel.protocol.session import Opening
from socks_tunnel.protocol.settings import WorkerSettings
from socks_tunnel_workers.targets.access import (
    Access,
    AccessDeniedError,
    Asker,
    UnresolvedError,
)
from socks_tunnel_workers.targets.resolver import UNKNOWN_TTL, ResolveError, Resolver
from socks_tunnel_workers.targets.tcp import TargetRelay
from socks_tunnel_workers.targets.udp import EndpointAssociation

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.flow import Flow
    from socks_tunnel_workers.relay.session import WorkerSession

logger = logging.getLogger(__name__)

RECHECK_SECONDS: Final = 0.002
"""How long a reload may hold the event loop at a time while it goes through the flows."""

QUESTIONS_MAX: Final = 256
"""RESOLVEs of one session that can be under way in this worker; a further one is refused."""


class Settings(Protocol):
    """What is configured at the moment."""

    @property
    def config(self) -> WorkerSettings:
        """The configuration in force."""

    @property
    def policies(self) -> PolicySet:
        """The policies in force."""


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
        self.settings = settings
        self.resolver = resolver
        self.access = access
        self.warn = warn
        self._flows = flows
        self._full = full
        self._questions: dict[int, set[int]] = {}
        self._recheck: Iterator[None] | None = None

    def policy(self, peer: str) -> Policy:
        """Returns the policy in force for a peer's flows."""
        policy = self.settings.policies.for_peer(peer)
        assert policy is not None, "build_policies gives every peer of an endpoint a policy"
        return policy

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
            self.warn(
                "full",
                "this worker holds as many flows as limits.flows_per_worker allows (%d); "
                "refusing more",
                self.settings.config.limits.flows_per_worker,
            )
        if reason is not None:
            session.core.refuse(message.conn_id, reason, kind=message.TYPE)
        elif isinstance(message, Resolve):
            self.resolve(session, message)
        else:
            self._start(session, message)

    def _start(self, session: WorkerSession, message: OpenConnection | Bind | UdpAssociate) -> None:
        flow: TargetRelay | EndpointAssociation
        if isinstance(message, UdpAssociate):
            flow = EndpointAssociation(self, session, message.conn_id)
        else:
            flow = TargetRelay(self, session, message)
        session.admit(flow)
        try:
            flow.start()
        except OSError as error:
            self.warn("resource", "cannot open a socket for peer %s: %s", session.peer, error)
            flow.abort(CloseReason.RESOURCE_LIMIT)

    # --- questions ------------------------------------------------------------------------------

    def resolve(self, session: WorkerSession, question: Resolve) -> None:
        """Answers RESOLVE, later. Raises :class:`RemoteProtocolError` if the question is open."""
        asked = self._questions.setdefault(session.number, set())
        if question.conn_id in asked:
            raise RemoteProtocolError(
                "RESOLVE came twice", kind="opened-twice", conn_id=question.conn_id
            )
        if len(asked) >= QUESTIONS_MAX:
            answer = Resolved(question.conn_id, CloseReason.RESOURCE_LIMIT)
            session.send(answer.encode())
            return
        asked.add(question.conn_id)
        spawn(f"resolve {question.conn_id}", self._resolve(session, question))

    def forget(self, session: WorkerSession) -> None:
        """The session is over: nobody waits for answers to its questions."""
        self._questions.pop(session.number, None)

    async def _resolve(self, session: WorkerSession, question: Resolve) -> None:
        reason: int = Reply.GENERAL_FAILURE
        answers: tuple[Answer, ...] = ()
        try:
            answers = await self._answers(session.peer, question)
            reason = CloseReason.ORDERLY
        except (AccessDeniedError, UnresolvedError, ResolveError) as error:
            reason = error.reply
        finally:
            asked = self._questions.get(session.number)
            if asked is not None and question.conn_id in asked:
                asked.discard(question.conn_id)
                if not asked:
                    del self._questions[session.number]
                session.send(Resolved(question.conn_id, reason, answers[:ANSWERS_MAX]).encode())

    async def _answers(self, peer: str, question: Resolve) -> tuple[Answer, ...]:
        """Returns what a flow of the peer could reach, on whatever port."""
        asker = Asker(peer, question.conn_id, "resolve")
        seconds = self.settings.config.targets.connect_timeout
        destination = HostPort(question.host, self.policy(peer).some_port)
        if question.kind is ResolveKind.ADDRESSES:
            allowed = await self.access.decide(
                asker, lambda: self.policy(peer), destination, seconds=seconds
            )
            ttl = UNKNOWN_TTL if allowed.ttl is None else allowed.ttl
            return tuple(Answer(ttl, str(address)) for address in allowed.addresses)
        self.access.literal(asker, self.policy(peer), destination)
        address = parse_ip(question.host)
        assert address is not None, "the decoder has checked it"
        names = await self.resolver.reverse(address, seconds=seconds, peer=peer)
        policy = self.policy(peer)
        return tuple(
            Answer(UNKNOWN_TTL, name)
            for name in names
            if policy.check(HostPort(name, policy.some_port)).verdict is not Verdict.DENIED
        )

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
                yield from flow.recheck()

    def _recheck_some(self) -> None:
        assert self._recheck is not None
        until = self.loop.time() + RECHECK_SECONDS
        for _ in self._recheck:
            if self.loop.time() >= until:
                self.loop.call_soon(self._recheck_some)
                return
        self._recheck = None
