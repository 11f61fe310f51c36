"""Answers RESOLVE: the addresses of a name or the names of an address.

The answer has only what the policy would let a flow of the peer reach.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort, parse_ip
from socks_tunnel.protocol.errors import CloseReason, Reply
from socks_tunnel.protocol.messages import ANSWERS_MAX, Answer, Resolve, Resolved, ResolveKind
from socks_tunnel.protocol.policy import Verdict
from socks_tunnel_workers.targets.access import AccessDeniedError, Asker, UnresolvedError
from socks_tunnel_workers.targets.resolver import UNKNOWN_TTL, ResolveError, Resolver
from socks_tunnel_workers.targets.services import TargetServices

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.session import WorkerSession

QUESTIONS_MAX: Final = 256
"""RESOLVEs of one session that may be under way in this worker. A further one is refused."""


class Questions:
    """Answers the questions of gateways. Those under way are in the core of their session."""

    def __init__(self, services: TargetServices, resolver: Resolver) -> None:
        self._services = services
        self._resolver = resolver

    def ask(self, session: WorkerSession, question: Resolve) -> None:
        """Starts to answer a question, or refuses it at the limit.

        The session has checked that the CONN_ID is free.
        """
        if len(session.core.questions) >= QUESTIONS_MAX:
            answer = Resolved(question.conn_id, CloseReason.RESOURCE_LIMIT)
            session.send(answer.encode())
            return
        task = spawn(f"resolve {question.conn_id}", self._answer(session, question))
        session.core.questions.add(question.conn_id, task.cancel)

    async def _answer(self, session: WorkerSession, question: Resolve) -> None:
        answers: tuple[Answer, ...] = ()
        reason: int = CloseReason.ORDERLY
        try:
            answers = await self._find(session.peer, question)
        except (AccessDeniedError, UnresolvedError, ResolveError) as error:
            reason = error.reply
        except Exception:
            # The task logs this bug. The other side must not wait for ever.
            self._send(session, Resolved(question.conn_id, Reply.GENERAL_FAILURE))
            raise
        self._send(session, Resolved(question.conn_id, reason, answers[:ANSWERS_MAX]))

    @staticmethod
    def _send(session: WorkerSession, answer: Resolved) -> None:
        # The id is removed first: when the supervisor sees RESOLVED, the id may be used again.
        session.core.questions.remove(answer.conn_id)
        session.send(answer.encode())

    async def _find(self, peer: str, question: Resolve) -> tuple[Answer, ...]:
        """Returns the answers that a flow of the peer could reach on some port."""
        services = self._services
        asker = Asker(peer, question.conn_id, "resolve")
        seconds = services.config.connect_timeout
        destination = HostPort(question.host, services.policy(peer).some_port)
        if question.kind is ResolveKind.ADDRESSES:
            allowed = await services.access.decide(
                asker, lambda: services.policy(peer), destination, seconds=seconds
            )
            ttl = UNKNOWN_TTL if allowed.ttl is None else allowed.ttl
            return tuple(Answer(ttl, str(address)) for address in allowed.addresses)
        services.access.literal(asker, services.policy(peer), destination)
        address = parse_ip(question.host)
        assert address is not None, "the decoder has checked it"
        names = await self._resolver.reverse(address, seconds=seconds, peer=peer)
        policy = services.policy(peer)
        return tuple(
            Answer(UNKNOWN_TTL, name)
            for name in names
            if policy.check(HostPort(name, policy.some_port)).verdict is not Verdict.DENIED
        )
