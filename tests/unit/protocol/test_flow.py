"""The life of a TCP flow: every transition of the table in protocol/flow.py, ids and tables."""

from functools import partial

import pytest

from socks_tunnel.protocol import bounded
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.flow import (
    ROW_EOF,
    ROW_OPEN,
    ConnIdAllocator,
    FlowState,
    FlowTable,
    InUse,
    Questions,
    TcpFlow,
)


def flow(send_window: int = 1000, receive_window: int = 1000) -> TcpFlow:
    return TcpFlow(7, send_window=send_window, receive_window=receive_window)


def state(made: TcpFlow) -> FlowState:
    return made.state


def opened() -> TcpFlow:
    made = flow()
    made.open()
    return made


def test_a_flow_from_its_opening_to_its_end() -> None:
    made = flow()
    assert (made.state, made.opening, made.opened) == (FlowState.OPENING, True, False)
    made.open()
    assert (made.state, made.opening, made.opened) == (FlowState.OPEN, False, True)
    made.send.finish()
    assert made.send.take_eof()
    assert state(made) is FlowState.HALF_LOCAL
    made.receive_eof()
    assert state(made) is FlowState.FINISHED
    assert (made.delivered, made.shutdown_due) == (False, True), "to be passed on to the socket"
    made.shut_down()
    assert (made.delivered, made.shutdown_due) == (True, False)
    made.close(CloseReason.ORDERLY)
    assert (made.state, made.closed) == (FlowState.CLOSED, True)


def test_the_peer_may_end_its_stream_first() -> None:
    made = opened()
    made.receive_eof()
    assert state(made) is FlowState.HALF_REMOTE
    made.send.finish()
    assert state(made) is FlowState.HALF_REMOTE, "SEND_EOF has not left yet"
    assert made.send.take_eof()
    assert state(made) is FlowState.FINISHED


def test_a_bind_listens_before_it_is_open() -> None:
    made = flow()
    made.listen()
    assert (made.state, made.opening) == (FlowState.LISTENING, True)
    with pytest.raises(RemoteProtocolError, match=r"^BIND_LISTENING came twice$") as caught:
        made.listen()
    assert (caught.value.kind, caught.value.conn_id) == ("opened-twice", 7)
    made.open()
    assert state(made) is FlowState.OPEN
    with pytest.raises(RemoteProtocolError, match=r"^an answer to an open came twice$") as caught:
        made.open()
    assert (caught.value.kind, caught.value.conn_id) == ("opened-twice", 7)


def test_the_end_is_passed_on_after_the_last_byte_and_not_before() -> None:
    made = opened()
    made.receive_data(5)
    made.receive_eof()
    assert not made.shutdown_due
    with pytest.raises(
        LocalProtocolError, match=r"^the local socket was shut down before its time$"
    ):
        made.shut_down()
    made.receive.consume(5)
    assert made.shutdown_due


def test_errors_of_the_peer_name_the_flow() -> None:
    made = flow(receive_window=4)
    with pytest.raises(RemoteProtocolError) as caught:
        made.receive_data(5)
    assert (caught.value.kind, caught.value.conn_id) == ("window-exceeded", 7)
    made.receive_eof()
    with pytest.raises(RemoteProtocolError) as caught:
        made.receive_eof()
    assert (caught.value.kind, caught.value.conn_id) == ("eof-twice", 7)
    with pytest.raises(RemoteProtocolError) as caught:
        made.resume(1, 1, ROW_OPEN)
    assert (caught.value.kind, caught.value.conn_id) == ("resume-received", 7)


def test_an_orderly_close_leaves_what_is_owed_to_the_local_socket() -> None:
    made = opened()
    made.receive_data(5)
    made.receive.pending.append(b"hello")
    made.send.write(b"nobody wants this any more")
    made.close(CloseReason.ORDERLY)
    assert (made.state, made.closing, made.owes) == (FlowState.CLOSING, True, True)
    assert made.cost == made.receive.pending.cost
    assert made.readable == 0
    made.receive.consume(5)
    made.abandon()
    assert (made.state, made.cost) == (FlowState.CLOSED, 0)
    made.close(CloseReason.RESET)
    assert state(made) is FlowState.CLOSED


@pytest.mark.parametrize("reason", [CloseReason.RESET, CloseReason.WORKER_LOST])
def test_any_other_close_leaves_nothing(reason: CloseReason) -> None:
    made = opened()
    made.receive_data(5)
    made.receive.pending.append(b"hello")
    made.close(reason)
    assert (made.state, made.cost) == (FlowState.CLOSED, 0)


def test_readable_is_what_window_and_end_allow() -> None:
    made = flow(send_window=10)
    assert made.readable == 10
    made.send.write(b"abc")
    assert made.readable == 7
    made.send.finish()
    assert made.readable == 0


def test_the_row_says_where_the_flow_is() -> None:
    made = flow(receive_window=100)
    assert made.row() == (7, 0, 100, 0)
    made.open()
    made.receive_data(30)
    made.receive.consume(30)
    assert made.row() == (7, 30, 100, ROW_OPEN)
    made.receive_eof()
    assert made.row() == (7, 30, 100, ROW_OPEN | ROW_EOF)


@pytest.mark.parametrize(
    ("flags", "after"),
    [(ROW_OPEN, FlowState.OPEN), (ROW_OPEN | ROW_EOF, FlowState.HALF_LOCAL)],
)
def test_a_resume_says_whether_our_end_of_file_has_to_leave_again(
    flags: int, after: FlowState
) -> None:
    made = opened()
    made.send.finish()
    assert made.send.take_eof()
    made.resume(0, 1000, flags)
    assert state(made) is after


def test_a_phase_that_no_flow_has_is_named() -> None:
    fields = opened().export() | {"phase": "half-closed (local)"}
    with pytest.raises(bounded.Malformed, match=r"^'phase' is not usable: half-closed \(local\)$"):
        TcpFlow.restore(fields)


# --- ids and tables -----------------------------------------------------------------------------


@pytest.mark.parametrize(("index", "count"), [(0, 1), (0, 2), (1, 2), (7, 8)])
def test_ids_are_a_worker_s_own_and_never_zero(index: int, count: int) -> None:
    allocator = ConnIdAllocator(index, count)
    ids = [allocator.allocate(()) for _ in range(100)]
    assert len(set(ids)) == 100
    assert 0 not in ids
    assert all(conn_id % count == index for conn_id in ids)


def test_ids_wrap_and_pass_over_those_in_use() -> None:
    allocator = ConnIdAllocator(0, 1, start=0xFFFFFFFF)
    assert [allocator.allocate({1, 2}) for _ in range(3)] == [0xFFFFFFFF, 3, 4]


@pytest.mark.parametrize("count", [3, 8])
def test_the_first_id_is_within_32_bits_wherever_it_begins(count: int) -> None:
    turns = (1 << 32) // count
    allocator = ConnIdAllocator(1, count, start=turns + 5)
    assert allocator.allocate(()) == 5 * count + 1
    assert ConnIdAllocator(1, count).allocate(()) == 1


def test_a_worker_outside_of_the_count_cannot_be() -> None:
    with pytest.raises(ValueError, match="worker 2 of 2"):
        ConnIdAllocator(2, 2)


def test_when_all_ids_are_in_use_that_is_said() -> None:
    class Everything:
        def __contains__(self, conn_id: object) -> bool:
            return True

    with pytest.raises(LocalProtocolError, match=r"^no CONN_ID is free$"):
        ConnIdAllocator(0, 1 << 31).allocate(Everything())


def test_a_table_keeps_its_limit_and_its_ids_apart() -> None:
    table: FlowTable[str] = FlowTable(2)
    table.add(1, "one")
    for conn_id, kind in ((0, "flow-exists"), (1, "flow-exists")):
        with pytest.raises(RemoteProtocolError, match=f"^CONN_ID {conn_id} cannot be") as caught:
            table.add(conn_id, "again")
        assert (caught.value.kind, caught.value.conn_id) == (kind, conn_id)
    table.add(2, "two")
    with pytest.raises(RemoteProtocolError, match=r"^the limit of 2 flows is reached$") as caught:
        table.check(3)
    assert (caught.value.kind, caught.value.conn_id) == ("too-many-flows", 3)
    assert (len(table), 1 in table, 3 in table, table.ids()) == (2, True, False, [1, 2])
    table.resize(1)
    assert table.ids() == [1, 2], "a reload ends no flow"
    with pytest.raises(RemoteProtocolError, match=r"^the limit of 1 flows is reached$"):
        table.check(3)
    table.resize(3)
    table.check(3)
    for name in table:
        assert table.remove({"one": 1, "two": 2}[name]) == name
    assert table.remove(1) is None
    assert table.get(1) is None


def test_a_question_is_given_up_once() -> None:
    questions = Questions()
    given_up: list[int] = []
    for conn_id in (1, 2, 3):
        questions.add(conn_id, partial(given_up.append, conn_id))
    assert (len(questions), questions.ids()) == (3, [1, 2, 3])
    questions.remove(2)
    questions.remove(9)
    assert (questions.give_up(1), questions.give_up(1), questions.give_up(2)) == (
        True,
        False,
        False,
    )
    questions.give_up_all()
    questions.give_up_all()
    assert given_up == [1, 3]
    assert not questions


@pytest.mark.parametrize(("conn_id", "used"), [(1, True), (2, True), (3, True), (4, False)])
def test_ids_of_open_flows_and_of_those_that_have_just_ended_are_in_use(
    conn_id: int, used: bool
) -> None:
    assert (conn_id in InUse({1, 2}, {2, 3})) is used
