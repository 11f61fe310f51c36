"""Windows, half-close and the flow table."""

from collections.abc import Callable

import pytest

from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.flow import (
    ConnIdAllocator,
    FlowState,
    FlowTable,
    ReceiveWindow,
    SendWindow,
    TcpFlow,
)


def flow(*, send_window: int = 1000, receive_window: int = 1000, opened: bool = True) -> TcpFlow:
    tcp_flow = TcpFlow(7, send_window=send_window, receive_window=receive_window)
    if opened:
        tcp_flow.open()
    return tcp_flow


# --- the sender's window ----------------------------------------------------------------------


def test_sender_may_send_up_to_the_limit_and_not_a_byte_more() -> None:
    window = SendWindow(1000)
    window.send(999)
    window.send(1)

    assert window.available == 0
    with pytest.raises(LocalProtocolError, match="only 0"):
        window.send(1)
    assert window.sent == 1000


def test_sender_may_go_on_after_an_update() -> None:
    window = SendWindow(1000)
    window.send(1000)

    assert window.update(600, 1600) is True
    assert (window.consumed, window.available) == (600, 600)


def test_sender_ignores_a_stale_update() -> None:
    window = SendWindow(1000)
    window.send(1000)
    window.update(600, 1600)

    for consumed, limit in ((600, 1600), (300, 1300), (0, 0)):
        assert window.update(consumed, limit) is False
        assert (window.consumed, window.limit) == (600, 1600)


def test_sender_learns_of_consumption_without_more_window() -> None:
    window = SendWindow(1000)
    window.send(1000)

    assert window.update(1000, 1000) is False
    assert (window.consumed, window.available) == (1000, 0)


def test_sender_never_loses_window_to_an_update_with_a_lower_limit() -> None:
    window = SendWindow(1000)
    window.send(10)

    assert window.update(10, 500) is False
    assert window.available == 990


def test_sender_refuses_that_more_was_consumed_than_sent() -> None:
    window = SendWindow(1000)
    window.send(10)

    with pytest.raises(RemoteProtocolError) as caught:
        window.update(11, 2000)

    assert caught.value.kind == "window-consumed"
    assert (window.consumed, window.limit) == (0, 1000)


# --- the receiver's window --------------------------------------------------------------------


def test_receiver_takes_up_to_its_limit_and_not_a_byte_more() -> None:
    window = ReceiveWindow(1000)
    window.receive(1000)

    with pytest.raises(RemoteProtocolError) as caught:
        window.receive(1)

    assert caught.value.kind == "window-exceeded"
    assert window.buffered == 1000


def test_receiver_gives_nothing_back_before_it_is_consumed() -> None:
    window = ReceiveWindow(1000)
    window.receive(1000)

    assert window.announce() == (0, 1000)


def test_receiver_owes_an_update_once_half_of_the_window_is_consumed() -> None:
    window = ReceiveWindow(1000)
    window.receive(1000)

    assert window.consume(499) is False
    assert window.consume(1) is True
    assert window.announce() == (500, 1500)
    assert window.consume(499) is False
    assert window.consume(1) is True
    assert window.announce() == (1000, 2000)


def test_receiver_goes_on_owing_an_update_until_it_announces() -> None:
    window = ReceiveWindow(1000)
    window.receive(1000)
    window.consume(500)

    assert window.consume(1) is True


def test_receiver_cannot_consume_what_did_not_come() -> None:
    window = ReceiveWindow(1000)
    window.receive(10)

    with pytest.raises(LocalProtocolError, match="only 10"):
        window.consume(11)


def test_receiver_never_takes_back_what_it_announced() -> None:
    window = ReceiveWindow(1000)
    window.receive(500)
    window.consume(500)
    window.announce()

    window.window = 100

    assert window.announce() == (500, 1500)
    window.receive(1000)


def test_receiver_announces_a_window_that_has_grown() -> None:
    window = ReceiveWindow(1000)
    window.window = 4000

    assert window.announce() == (0, 4000)


# --- half-close -------------------------------------------------------------------------------

SEND, RECEIVE, OPEN, CLOSE = TcpFlow.send_eof, TcpFlow.receive_eof, TcpFlow.open, TcpFlow.close

PATHS: list[tuple[list[Callable[[TcpFlow], None]], FlowState]] = [
    ([], FlowState.OPENING),
    ([SEND], FlowState.OPENING),
    ([RECEIVE], FlowState.OPENING),
    ([OPEN], FlowState.OPEN),
    ([OPEN, SEND], FlowState.HALF_LOCAL),
    ([SEND, OPEN], FlowState.HALF_LOCAL),
    ([OPEN, RECEIVE], FlowState.HALF_REMOTE),
    ([OPEN, SEND, RECEIVE], FlowState.FINISHED),
    ([OPEN, RECEIVE, SEND], FlowState.FINISHED),
    ([SEND, OPEN, RECEIVE], FlowState.FINISHED),
    ([CLOSE], FlowState.CLOSED),
    ([OPEN, CLOSE], FlowState.CLOSED),
    ([OPEN, SEND, CLOSE], FlowState.CLOSED),
    ([OPEN, RECEIVE, CLOSE], FlowState.CLOSED),
    ([OPEN, SEND, RECEIVE, CLOSE], FlowState.CLOSED),
    ([OPEN, CLOSE, CLOSE], FlowState.CLOSED),
]


@pytest.mark.parametrize(
    ("path", "state"), PATHS, ids=["-".join(step.__name__ for step in p) or "new" for p, _ in PATHS]
)
def test_state(path: list[Callable[[TcpFlow], None]], state: FlowState) -> None:
    tcp_flow = flow(opened=False)
    for step in path:
        step(tcp_flow)

    assert tcp_flow.state is state


def test_early_data_flows_before_the_flow_is_open() -> None:
    tcp_flow = flow(opened=False)

    tcp_flow.send_data(100)
    tcp_flow.receive_data(100)

    assert tcp_flow.send.sent == tcp_flow.receive.received == 100


def test_our_eof_leaves_the_other_direction_open() -> None:
    tcp_flow = flow()
    tcp_flow.send_eof()

    tcp_flow.receive_data(100)
    with pytest.raises(LocalProtocolError, match=r"half-closed \(local\)"):
        tcp_flow.send_data(1)
    with pytest.raises(LocalProtocolError, match="SEND_EOF"):
        tcp_flow.send_eof()


def test_the_peers_eof_leaves_our_direction_open() -> None:
    tcp_flow = flow()
    tcp_flow.receive_eof()

    tcp_flow.send_data(100)
    with pytest.raises(RemoteProtocolError) as caught:
        tcp_flow.receive_data(1)
    assert (caught.value.kind, caught.value.conn_id) == ("data-after-eof", 7)
    with pytest.raises(RemoteProtocolError) as caught:
        tcp_flow.receive_eof()
    assert (caught.value.kind, caught.value.conn_id) == ("eof-twice", 7)


def test_an_answer_comes_once() -> None:
    tcp_flow = flow()

    with pytest.raises(RemoteProtocolError) as caught:
        tcp_flow.open()

    assert (caught.value.kind, caught.value.conn_id) == ("opened-twice", 7)


def test_nothing_is_sent_on_a_closed_flow() -> None:
    tcp_flow = flow()
    tcp_flow.close()

    with pytest.raises(LocalProtocolError):
        tcp_flow.send_data(1)
    with pytest.raises(LocalProtocolError):
        tcp_flow.send_eof()


def test_a_flow_is_delivered_once_both_ended_and_the_socket_took_everything() -> None:
    tcp_flow = flow()
    tcp_flow.receive_data(100)
    tcp_flow.send_eof()
    assert not tcp_flow.delivered
    tcp_flow.receive_eof()
    assert not tcp_flow.delivered
    tcp_flow.receive.consume(99)
    assert not tcp_flow.delivered
    tcp_flow.receive.consume(1)

    assert tcp_flow.delivered


def test_a_flow_that_was_never_opened_is_not_delivered() -> None:
    tcp_flow = flow(opened=False)
    tcp_flow.send_eof()
    tcp_flow.receive_eof()

    assert not tcp_flow.delivered


# --- the table --------------------------------------------------------------------------------


def test_table_keeps_flows_by_id() -> None:
    table: FlowTable[str] = FlowTable(10)
    table.add(1, "a")
    table.add(0xFFFFFFFF, "b")

    assert len(table) == 2
    assert 1 in table
    assert 2 not in table
    assert table.get(0xFFFFFFFF) == "b"
    assert table.get(2) is None
    assert table.remove(1) == "a"
    assert table.remove(1) is None
    assert list(table) == ["b"]


def test_table_may_change_while_it_is_gone_through() -> None:
    table: FlowTable[int] = FlowTable(10)
    for conn_id in range(1, 6):
        table.add(conn_id, conn_id)

    for conn_id in table:
        table.remove(conn_id)

    assert len(table) == 0


@pytest.mark.parametrize("conn_id", [0, 5])
def test_table_refuses_an_id_that_is_0_or_in_use(conn_id: int) -> None:
    table: FlowTable[str] = FlowTable(10)
    table.add(5, "first")

    with pytest.raises(RemoteProtocolError) as caught:
        table.add(conn_id, "second")

    assert (caught.value.kind, caught.value.conn_id) == ("flow-exists", conn_id)
    assert table.get(5) == "first"


def test_table_has_a_limit() -> None:
    table: FlowTable[str] = FlowTable(2)
    table.add(1, "a")
    table.add(2, "b")

    with pytest.raises(RemoteProtocolError) as caught:
        table.add(3, "c")

    assert (caught.value.kind, caught.value.conn_id) == ("too-many-flows", 3)
    table.remove(1)
    table.add(3, "c")


# --- CONN_IDs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8])
def test_ids_tell_their_worker_and_are_never_0_nor_repeated(count: int) -> None:
    table: FlowTable[object] = FlowTable(1000)
    seen: set[int] = set()
    for index in range(count):
        allocator = ConnIdAllocator(index, count)
        ids = [allocator.allocate(table) for _ in range(100)]
        assert {conn_id % count for conn_id in ids} == {index}
        assert ids == sorted(ids)
        assert not seen & set(ids)
        seen |= set(ids)

    assert 0 not in seen
    assert len(seen) == 100 * count


def test_ids_go_around_past_those_in_use() -> None:
    count = 3
    turns = (1 << 32) // count
    table: FlowTable[object] = FlowTable(1000)
    allocator = ConnIdAllocator(0, count, start=turns - 1)
    last = allocator.allocate(table)
    assert last == (turns - 1) * count
    assert last < 1 << 32
    for conn_id in (3, 6, 12):
        table.add(conn_id, object())

    assert [allocator.allocate(table) for _ in range(3)] == [9, 15, 18]


def test_an_id_is_found_while_there_is_one() -> None:
    # Four ids for this worker: 0 (never used), 1 << 30, 2 << 30 and 3 << 30.
    count = 1 << 30
    table: FlowTable[object] = FlowTable(10)
    allocator = ConnIdAllocator(0, count)
    for _ in range(3):
        table.add(allocator.allocate(table), object())
    assert sorted((1 << 30, 2 << 30, 3 << 30)) == [n << 30 for n in (1, 2, 3) if n << 30 in table]

    with pytest.raises(LocalProtocolError, match="no CONN_ID"):
        allocator.allocate(table)
    table.remove(2 << 30)
    assert allocator.allocate(table) == 2 << 30


@pytest.mark.parametrize(("index", "count"), [(-1, 2), (2, 2), (0, 0)])
def test_a_worker_that_cannot_be_is_our_own_mistake(index: int, count: int) -> None:
    with pytest.raises(ValueError, match="cannot be"):
        ConnIdAllocator(index, count)
