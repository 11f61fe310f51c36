"""A question about a name, on its way through the tunnel (RESOLVE and RESOLVED)."""

from __future__ import annotations

from typing import ClassVar, Protocol

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    Answer,
    CloseConnection,
    Message,
    Resolve,
    Resolved,
    ResolveKind,
)
from socks_tunnel_workers.relay.session import Flow, WorkerSession


class Questioner(Protocol):
    """Who asks the question."""

    @property
    def client(self) -> str:
        """The client's name in tables and logs."""

    def answered(self, reason: int, answers: tuple[Answer, ...]) -> None:
        """Called with the answers. `reason` is 0 (orderly) also if there are none."""


class Question(Flow):
    """One question to the endpoint. It carries no payload, and ends with its answer."""

    __slots__ = ("host", "question", "questioner")

    kind: ClassVar[str] = "resolve"

    def __init__(
        self,
        session: WorkerSession,
        conn_id: int,
        questioner: Questioner,
        question: ResolveKind,
        host: str,
    ) -> None:
        super().__init__(session, conn_id, command="resolve", client=questioner.client)
        self.questioner = questioner
        self.question = question
        self.host = host
        self.destination = HostPort(host, 0)

    def ask(self) -> None:
        """Sends RESOLVE to the endpoint."""
        self.session.send(Resolve(self.conn_id, self.question, self.host).encode())

    def on_message(self, message: Message) -> None:
        """Takes the answer, or a CLOSE in its place."""
        match message:
            case Resolved(reason=reason, answers=answers):
                self._answered(reason, answers)
            case CloseConnection(reason=reason):
                self._answered(reason or CloseReason.GENERAL_FAILURE, ())
            case _:
                raise self.unexpected(type(message).__name__)

    def _answered(self, reason: int, answers: tuple[Answer, ...]) -> None:
        if self.end(reason):
            self.questioner.answered(reason, answers)

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends the question. With `tell_peer` the endpoint stops its look-up."""
        if tell_peer and not self.ended:
            self.session.core.close(self.conn_id, reason)
        self._answered(reason or CloseReason.GENERAL_FAILURE, ())

    # --- resume ---------------------------------------------------------------------------------

    def row(self) -> tuple[int, int, int, int]:
        """Returns the row of RESUME, without positions: a question has no stream."""
        return self.conn_id, 0, 0, 0

    def on_missing(self) -> bool:
        """Asks again: the endpoint does not know the question, or its answer was lost."""
        self.ask()
        return True

    # --- for people -----------------------------------------------------------------------------

    @property
    def up(self) -> int:
        """Always 0: a question has no payload."""
        return 0

    @property
    def down(self) -> int:
        """Always 0: an answer has no payload."""
        return 0

    @property
    def state(self) -> str:
        """Always "asked": a question waits for its answer."""
        return "asked"
