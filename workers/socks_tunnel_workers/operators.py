"""A worker's answers to an operator: counts for `status`, lines for `connections` and `top`."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Final

from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ipc import Answer, Ask, Kill
from socks_tunnel_workers.relay.ranking import rank
from socks_tunnel_workers.relay.session import Flow, WorkerSession

ROWS_PER_FRAME: Final = 100
"""Flows in one frame of an answer. So a frame stays far below its limit, and the worker moves the
bytes of other flows before it makes the next frame."""

SUMMED_PER_TURN: Final = 500
"""Flows without a link whose bytes are added up in one turn of the event loop."""


class Answers:
    """Answers the supervisor's questions.

    `flows` returns all flows, `status` the row for `status`, and `waiting` the flows that wait for
    a link. `send` sends an answer, or a part of one, to the supervisor.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[Answer], None],
        flows: Callable[[], Iterable[Flow]],
        status: Callable[[], dict[str, object]],
        waiting: Callable[[], list[Flow]],
    ) -> None:
        self._loop = loop
        self._send = send
        self._flows = flows
        self._status = status
        self._waiting = waiting

    def answer(self, question: Ask) -> None:
        """Answers a question, with one part in each turn of the event loop."""
        if question.what == "status":
            self._send_status(question.number, self._waiting(), Counter())
        elif question.limit < 0:
            self._send_rows(question.number, self._flows())
        else:
            rank(
                self._loop,
                list(self._flows()),
                question.limit,
                question.by,
                partial(self._send_rows, question.number),
            )

    def kill(self, message: Kill, sessions: Iterable[WorkerSession]) -> None:
        """Ends a flow at once, by a RST on each side, and answers with the flow's last row.

        The answer has no row if there is no such flow.
        """
        rows = []
        for session in sessions:
            flow = session.flows.get(message.conn_id) if session.peer == message.peer else None
            if flow is not None:
                rows.append(flow.as_row(self._loop.time()))
                session.core.guard(flow, flow.abort, CloseReason.RESET)
        self._send(Answer(message.number, rows, more=False))

    def _send_status(self, number: int, left: list[Flow], held: Counter[str]) -> None:
        """Sends the row for `status`, once the bytes of all flows in `left` are added to `held`."""
        for flow in left[-SUMMED_PER_TURN:]:
            held[flow.session.peer] += flow.held
        del left[-SUMMED_PER_TURN:]
        if left:
            self._loop.call_soon(self._send_status, number, left, held)
        else:
            row = {**self._status(), "waiting_held": dict(held)}
            self._send(Answer(number, [row], more=False))

    def _send_rows(self, number: int, flows: Iterable[Flow]) -> None:
        self._send_some(number, iter(list(flows)))

    def _send_some(self, number: int, left: Iterator[Flow]) -> None:
        now = self._loop.time()
        rows: list[dict[str, object]] = []
        for flow in left:
            rows.append(flow.as_row(now))
            if len(rows) == ROWS_PER_FRAME:
                self._send(Answer(number, rows, more=True))
                self._loop.call_soon(self._send_some, number, left)
                return
        self._send(Answer(number, rows, more=False))
