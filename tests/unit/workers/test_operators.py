"""What a worker tells an operator, in parts that let others' bytes move."""

import asyncio
from typing import Any, cast

from socks_tunnel.protocol.ipc import Answer, Ask
from socks_tunnel_workers.operators import ROWS_PER_FRAME, SUMMED_PER_TURN, Answers
from socks_tunnel_workers.relay.session import Flow


class FakeLoop:
    def __init__(self) -> None:
        self.later: list[Any] = []

    def time(self) -> float:
        return 5.0

    def call_soon(self, callback: Any, *arguments: Any) -> None:
        self.later.append((callback, arguments))

    def turn(self) -> None:
        callback, arguments = self.later.pop(0)
        callback(*arguments)


class FakeSession:
    def __init__(self, peer: str) -> None:
        self.peer = peer


class FakeFlow:
    def __init__(self, number: int, peer: str = "office") -> None:
        self.number = number
        self.session = FakeSession(peer)
        self.held = 1000 + number
        self.up = number
        self.down = 0
        self.started = 0.0
        self.ranked = 0
        self.ended = False

    def as_row(self, now: float) -> dict[str, object]:
        return {"conn_id": self.number, "now": now}


def answers(
    count: int, waiting: list[FakeFlow] | None = None
) -> tuple[Answers, FakeLoop, list[Answer]]:
    loop, sent = FakeLoop(), list[Answer]()
    flows = [cast("Flow", FakeFlow(number)) for number in range(count)]
    made = Answers(
        cast("asyncio.AbstractEventLoop", loop),
        sent.append,
        lambda: flows,
        lambda: {"flows_tcp": count},
        lambda: cast("list[Flow]", list(waiting or ())),
    )
    return made, loop, sent


def test_status_is_one_row() -> None:
    made, _, sent = answers(3)
    made.answer(Ask(7, "status", -1, ""))
    assert sent == [Answer(7, [{"flows_tcp": 3, "waiting_held": {}}], more=False)]


def test_status_adds_up_what_flows_without_a_link_hold_some_of_them_a_turn() -> None:
    waiting = [FakeFlow(number) for number in range(SUMMED_PER_TURN)]
    waiting += [FakeFlow(number, "backup") for number in range(2)]
    made, loop, sent = answers(3, waiting)
    made.answer(Ask(7, "status", -1, ""))
    assert (sent, len(loop.later)) == ([], 1), "others' bytes move first"
    loop.turn()
    expected = {"backup": 2001, "office": sum(range(1000, 1000 + SUMMED_PER_TURN))}
    assert sent == [Answer(7, [{"flows_tcp": 3, "waiting_held": expected}], more=False)]
    assert not loop.later


def test_many_flows_are_told_a_part_a_turn() -> None:
    made, loop, sent = answers(2 * ROWS_PER_FRAME + 1)
    made.answer(Ask(7, "connections", -1, ""))
    assert len(sent) == 1
    while loop.later:
        loop.turn()
    assert [len(answer.rows) for answer in sent] == [ROWS_PER_FRAME, ROWS_PER_FRAME, 1]
    assert [answer.more for answer in sent] == [True, True, False]
    rows = [row["conn_id"] for answer in sent for row in answer.rows]
    assert rows == list(range(2 * ROWS_PER_FRAME + 1))


def test_the_first_flows_by_something() -> None:
    made, loop, sent = answers(10)
    made.answer(Ask(7, "connections", 2, "total"))
    while loop.later:
        loop.turn()
    assert [[row["conn_id"] for row in answer.rows] for answer in sent] == [[9, 8]]


def test_without_flows_the_answer_is_empty() -> None:
    made, _, sent = answers(0)
    made.answer(Ask(7, "connections", -1, ""))
    assert sent == [Answer(7, [], more=False)]
