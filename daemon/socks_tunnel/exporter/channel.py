"""The exporter's stream to the supervisor: the pushed state, and questions for the status page."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import Any, Final

from socks_tunnel.ipc.stream import Channel
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    Answer,
    Ask,
    ChildHello,
    Control,
    IpcPing,
    IpcPong,
    ReadyState,
    Shutdown,
)

_log = logging.getLogger(__name__)

STATE_MAX_AGE: Final = 15.0
"""Seconds without a message after which the supervisor counts as hung."""

QUESTIONS_MAX: Final = 4
"""Questions that may be unanswered at a time."""

ROWS_MAX: Final = 1000
"""Rows of an answer that are kept. The supervisor sends far fewer."""


class State:
    """The last state that the supervisor has pushed. `now` returns monotonic seconds."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._heard_at: float | None = None
        self._reason: str | None = "starting"

    def push(self, reason: str | None) -> None:
        """Records a state: ready (None), or not for `reason`."""
        self._heard_at = self._now()
        self._reason = reason

    def unhealthy(self) -> str | None:
        """Returns why the supervisor counts as hung; None if it does not."""
        if self._heard_at is None:
            return "the supervisor has not said anything yet"
        age = self._now() - self._heard_at
        if age > STATE_MAX_AGE:
            return f"the supervisor has not said anything for {age:.0f} s"
        return None

    def unready(self) -> str | None:
        """Returns why the instance cannot serve; None if it can."""
        return self.unhealthy() or self._reason


class SupervisorChannel(Channel):
    """The stream to the supervisor. `done` is called once, when the stream has ended."""

    def __init__(self, state: State, done: Callable[[], None]) -> None:
        super().__init__()
        self._state = state
        self._done = done
        self._questions: dict[int, tuple[list[Any], asyncio.Future[list[Any]]]] = {}
        self._last_question = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sends the hello with this process's id."""
        super().connection_made(transport)
        self.send_control(0, ChildHello(os.getpid()))

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        """Raises: the exporter takes no tunnel messages."""
        del session, messages
        raise RemoteProtocolError("a tunnel message came to the exporter", kind="ipc-message")

    def on_control(self, session: int, message: Control) -> None:
        """Takes a control message of the supervisor."""
        del session
        match message:
            case ReadyState(reason=reason):
                self._state.push(reason)
            case IpcPing(number=number):
                self.send_control(0, IpcPong(number))
            case Answer():
                self._answered(message)
            case Shutdown():
                self.close()
            case _:
                raise RemoteProtocolError(
                    f"the exporter does not take the control message '{message.OP}'",
                    kind="ipc-control",
                )

    def on_closed(self, error: Exception | None) -> None:
        """Ends the exporter: the supervisor has ended, or has sent Shutdown."""
        if error is not None:
            _log.error("the exporter lost its connection to the supervisor: %s; it ends", error)
        for _, answer in self._questions.values():
            if not answer.done():
                answer.set_exception(ConnectionError("the supervisor has ended"))
        self._done()

    # --- questions ----------------------------------------------------------------------------

    async def ask(self, what: str) -> list[Any]:
        """Returns the rows with which the supervisor answers a question.

        Raises :class:`ConnectionError` if the supervisor has ended, or has too many questions
        already. The caller has to limit the wait.
        """
        if self.closing or len(self._questions) >= QUESTIONS_MAX:
            raise ConnectionError("the supervisor takes no questions at the moment")
        self._last_question += 1
        number = self._last_question
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._questions[number] = [], answer
        self.send_control(0, Ask(number, what, -1, ""))
        try:
            return await answer
        finally:
            self._questions.pop(number, None)

    def _answered(self, message: Answer) -> None:
        question = self._questions.get(message.number)
        if question is None:
            return  # the asker has given up
        rows, answer = question
        rows += message.rows[: ROWS_MAX - len(rows)]
        if not message.more and not answer.done():
            answer.set_result(rows)
