"""A session beyond what the property test drives it through: peers that break the protocol.

This file is long because all of its tests share the flow and the outlet that remember everything.
"""

from functools import partial

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.messages import (
    HEADER,
    Bind,
    CloseConnection,
    ConnectionOpened,
    Data,
    Message,
    OpenConnection,
    Resolve,
    Resolved,
    ResolveKind,
    SendEof,
    UdpAssociate,
    UdpAssociateClosed,
    UdpPacket,
    WindowUpdate,
    decode,
    message_header,
)
from socks_tunnel.protocol.session import CLOSED_REMEMBERED_MAX, Opening, Row, Session, Terms

TERMS = Terms(1000, 65_529, 300, frozenset({"resume"}))


class Flow:
    def __init__(self, outlet: "Outlet", conn_id: int, *, udp: bool = False) -> None:
        self.outlet = outlet
        self.conn_id = conn_id
        self.udp = udp
        self.served = 0
        self.queued = 0
        self.events: list[object] = []
        self.fails: Exception | None = None
        self.cannot_end: Exception | None = None
        self.asks_again = False

    def _note(self, event: object) -> None:
        self.events.append(event)
        if self.fails is not None:
            raise self.fails

    def on_data(self, data: memoryview) -> None:
        self._note(bytes(data))

    def on_window(self, update: WindowUpdate) -> None:
        self._note(update)

    def on_datagram(self, packet: memoryview) -> None:
        self._note(bytes(packet))

    def on_message(self, message: Message) -> None:
        self._note(message)

    def on_turn(self) -> None:
        self._note("turn")

    def on_detached(self) -> None:
        self._note("detached")

    def on_resumed(self, received: int, limit: int, flags: int) -> None:
        self._note((received, limit, flags))

    def on_missing(self) -> bool:
        self._note("missing")
        return self.asks_again

    def on_repeated(self, opening: Message) -> None:
        self._note(opening)

    def sweep(self, now: float) -> None:
        self._note(now)

    def row(self) -> Row:
        return self.conn_id, 1, 2, 1

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        self.events.append(("abort", reason, tell_peer))
        if self.cannot_end is not None:
            raise self.cannot_end
        if tell_peer:
            self.outlet.session.close(self.conn_id, reason)
        self.outlet.session.flows.remove(self.conn_id)


class Outlet:
    def __init__(self, *, opens: bool = False, flows_max: int = 100) -> None:
        self.session: Session[Flow] = Session(self, opens=opens, flows_max=flows_max)
        self.sent: list[bytes] = []
        self.errors: list[str] = []
        self.said = ""
        self.said_of = 0
        self.bugs: list[Exception] = []
        self.named: list[int] = []
        """The CONN_ID that each error and each bug was told with."""
        self.unknown: list[object] = []
        self.opened: list[Opening] = []
        self.open_fails: Exception | None = None

    def transmit(self, message: bytes) -> None:
        self.sent.append(message)

    def send_pieces(self, header: bytes, payload: bytes | memoryview) -> None:
        self.sent.append(header + bytes(payload))

    def open(self, message: Opening) -> None:
        self.opened.append(message)
        if self.open_fails is not None:
            raise self.open_fails
        self.add(message.conn_id)

    def add(self, conn_id: int, *, udp: bool = False) -> Flow:
        flow = Flow(self, conn_id, udp=udp)
        self.session.flows.add(conn_id, flow)
        return flow

    def protocol_error(self, error: RemoteProtocolError, conn_id: int) -> None:
        self.errors.append(error.kind)
        self.said = str(error)
        self.said_of = error.conn_id
        self.named.append(conn_id)

    def bug(self, error: Exception, conn_id: int) -> None:
        self.bugs.append(error)
        self.named.append(conn_id)

    def unknown_message(self) -> None:
        self.unknown.append("message")

    def unknown_flow(self, *, datagram: bool) -> None:
        self.unknown.append(datagram)

    def receive(self, message: bytes) -> None:
        self.session.receive(memoryview(message))

    @property
    def decoded(self) -> list[Message]:
        return [decode(message) for message in self.sent]


def states(session: Session[Flow]) -> tuple[bool, bool]:
    return session.resuming, session.open_to_send


def attached(*, opens: bool = False, credit: int = 1000, flows_max: int = 100) -> Outlet:
    outlet = Outlet(opens=opens, flows_max=flows_max)
    outlet.session.attach(TERMS, credit, resume=True)
    return outlet


OPEN = OpenConnection(7, "example.com", 80)

# --- openings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "opening",
    [
        OPEN,
        Bind(7, HostPort("10.0.0.1", 1)),
        UdpAssociate(7),
        Resolve(7, ResolveKind.ADDRESSES, "example.com"),
    ],
    ids=lambda opening: type(opening).__name__,
)
def test_openings_of_the_peer_are_handed_on_and_a_gateway_takes_none(opening: Opening) -> None:
    outlet = attached()
    outlet.receive(opening.encode())
    assert outlet.opened == [opening]
    gateway = attached(opens=True)
    gateway.receive(opening.encode())
    assert gateway.opened == []
    assert gateway.errors == ["unexpected-message"]
    (refusal,) = gateway.decoded
    assert isinstance(refusal, CloseConnection | UdpAssociateClosed | Resolved)
    assert refusal.reason == CloseReason.PROTOCOL_ERROR


def test_an_opening_for_an_open_flow_ends_that_flow() -> None:
    outlet = attached(flows_max=1)
    flow = outlet.add(7)
    outlet.receive(OPEN.encode())
    assert flow.events == [("abort", CloseReason.PROTOCOL_ERROR, True)]
    assert outlet.opened == []
    assert outlet.decoded == [CloseConnection(7, CloseReason.PROTOCOL_ERROR)]


def test_an_opening_beyond_the_limit_is_refused() -> None:
    outlet = attached(flows_max=1)
    outlet.add(8)
    outlet.receive(UdpAssociate(7).encode())
    assert outlet.errors == ["too-many-flows"]
    assert outlet.decoded == [UdpAssociateClosed(7, CloseReason.RESOURCE_LIMIT)]


# --- one message costs one flow -------------------------------------------------------------------


@pytest.mark.parametrize(
    "fails", [RecursionError("deep"), ValueError("odd"), LocalProtocolError("ours")]
)
def test_whatever_a_message_meets_costs_its_flow_alone(fails: Exception) -> None:
    outlet = attached()
    flow, other = outlet.add(7), outlet.add(8)
    flow.fails = fails
    outlet.receive(Data(7, b"x").encode())
    assert outlet.bugs == [fails]
    assert flow.events[-1] == ("abort", CloseReason.GENERAL_FAILURE, True)
    outlet.receive(Data(8, b"y").encode())
    assert other.events == [b"y"]


@pytest.mark.parametrize(
    ("opening", "answer"),
    [
        (OPEN, CloseConnection(7, CloseReason.GENERAL_FAILURE)),
        (UdpAssociate(7), UdpAssociateClosed(7, CloseReason.GENERAL_FAILURE)),
        (Resolve(7, ResolveKind.ADDRESSES, "a.b"), Resolved(7, CloseReason.GENERAL_FAILURE)),
    ],
    ids=lambda message: type(message).__name__,
)
def test_an_opening_that_meets_a_bug_is_answered(opening: Opening, answer: Message) -> None:
    outlet = attached()
    outlet.open_fails = ValueError("odd")
    outlet.receive(opening.encode())
    assert outlet.bugs == [outlet.open_fails]
    assert outlet.decoded == [answer]


def test_a_message_that_does_not_fit_its_layout_closes_the_flow() -> None:
    outlet = attached()
    flow = outlet.add(7)
    outlet.receive(message_header(Data.TYPE, 7))
    assert outlet.errors == ["malformed-data"]
    assert flow.events == [("abort", CloseReason.PROTOCOL_ERROR, True)]


def test_messages_for_nobody_are_answered_only_if_they_carry_a_stream() -> None:
    outlet = attached()
    outlet.receive(Data(7, b"x").encode())
    outlet.receive(SendEof(7).encode())
    for message in (
        WindowUpdate(7, 1, 2).encode(),
        CloseConnection(7).encode(),
        UdpPacket(7, b"x").encode(),
        ConnectionOpened(7, HostPort("10.0.0.1", 1)).encode(),
        message_header(250, 7),
        message_header(CloseConnection.TYPE, 7) + b"too long",
    ):
        outlet.receive(message)
    assert outlet.decoded == [CloseConnection(7, CloseReason.UNKNOWN_FLOW)] * 2
    assert outlet.unknown == [False, False, True, "message"]


def test_messages_reach_their_flow() -> None:
    outlet = attached()
    flow = outlet.add(7, udp=True)
    outlet.receive(UdpPacket(7, b"packet").encode())
    outlet.receive(WindowUpdate(7, 1, 2).encode())
    outlet.receive(SendEof(7).encode())
    assert flow.events == [b"packet", WindowUpdate(7, 1, 2), SendEof(7)]


# --- credit ---------------------------------------------------------------------------------------


def test_control_messages_never_wait_and_datagrams_have_their_overdraft() -> None:
    outlet = attached(credit=5)
    outlet.session.send(b"control")
    assert outlet.session.scheduler.credit == -2
    below = b"d" * -outlet.session.scheduler.floor
    outlet.session.send_datagram(below, 0.0)
    outlet.session.send_datagram(b"waits", 0.0)
    assert outlet.sent == [b"control", below]
    outlet.session.grant(1_000, 0.01)
    assert outlet.sent[-1] == b"waits"


def test_flows_get_their_turn_with_credit() -> None:
    outlet = attached(credit=0)
    flow = outlet.add(7)
    flow.served = 1_000  # more than its share
    outlet.session.scheduler.wait(flow)
    outlet.session.grant(0, 0.0)
    assert flow.events == []
    outlet.session.grant(1, 0.0)
    assert flow.events == ["turn"]


def test_without_a_link_nothing_leaves() -> None:
    outlet = Outlet()
    session = outlet.session
    session.send(b"control")
    session.send_datagram(b"datagram", 0.0)
    session.grant(1000, 0.0)
    session.detach()
    assert outlet.sent == []
    assert session.scheduler.expired == 1
    assert not session.open_to_send


# --- resume ---------------------------------------------------------------------------------------


def test_no_flow_has_its_turn_before_the_peer_s_rows_are_in() -> None:
    outlet = attached()
    flow = outlet.add(7)
    session = outlet.session
    session.detach()
    session.attach(TERMS, 0, resume=True)
    flow.events.clear()
    session.scheduler.wait(flow)
    session.grant(1_000, 0.0)
    assert flow.events == []
    session.resumed([(7, 1, 2, 1)], last=True)
    assert flow.events[-1] == "turn"


def test_a_link_without_resume_cannot_take_flows_over() -> None:
    outlet = attached()
    outlet.add(7)
    with pytest.raises(LocalProtocolError, match=r"^a link without resume cannot take flows over$"):
        outlet.session.attach(TERMS, 0, resume=False)


def test_the_peer_s_rows_end_what_it_lacks_and_what_it_has_closed() -> None:
    outlet = attached()
    kept, closed, missing, again = (outlet.add(conn_id) for conn_id in (1, 2, 3, 4))
    gone = outlet.add(5, udp=True)
    again.asks_again = True
    session = outlet.session
    session.detach()
    assert [flow.events for flow in (kept, closed)] == [["detached"], ["detached"]]
    assert session.attach(TERMS, 10, resume=True) == [(n, 1, 2, 1) for n in (1, 2, 3, 4, 5)]
    assert states(session) == (True, False)
    session.resumed([(1, 5, 6, 1), (2, 0, 0, 4 | 0x10 << 8), (5, 0, 0, 4 | 0x11 << 8)], last=False)
    assert states(session) == (True, False)
    session.resumed([(9, 0, 0, 1), (10, 0, 0, 0)], last=True)
    assert states(session) == (False, True)
    assert kept.events[-1] == (5, 6, 1)
    assert closed.events[-1] == CloseConnection(2, 0x10)
    assert gone.events[-1] == UdpAssociateClosed(5, 0x11)
    assert missing.events[-2:] == ["missing", ("abort", CloseReason.RESUME_FAILED, False)]
    assert again.events[-1] == "missing"
    assert outlet.decoded == [CloseConnection(9, CloseReason.RESUME_FAILED)]


def test_flows_opened_after_the_link_came_up_take_no_part() -> None:
    outlet = attached()
    outlet.add(1)
    outlet.session.attach(TERMS, 0, resume=True)
    newer = outlet.add(2)
    outlet.session.resumed([], last=True)
    assert newer.events == []


def test_a_row_does_not_set_a_flow_back_that_was_opened_on_this_link() -> None:
    """RESUME and the lanes are not in order. The gateway asks again for a flow of which the answer
    was lost, and its opening can overtake the row that it sent before: that row is of the old link.
    """
    outlet = attached()
    outlet.session.detach()
    outlet.session.attach(TERMS, 1000, resume=True)
    outlet.receive(OPEN.encode())
    opened = outlet.session.flows.get(OPEN.conn_id)
    assert opened is not None
    outlet.session.resumed([(OPEN.conn_id, 0, 6, 0)], last=True)
    assert opened.events == []
    assert outlet.errors == []


def test_a_row_is_not_for_a_flow_that_has_the_id_anew() -> None:
    outlet = attached()
    former = outlet.add(OPEN.conn_id)
    outlet.session.attach(TERMS, 1000, resume=True)
    former.abort(CloseReason.RESET)
    outlet.receive(OPEN.encode())
    opened = outlet.session.flows.get(OPEN.conn_id)
    assert opened is not None
    assert opened is not former
    outlet.session.resumed([(OPEN.conn_id, 0, 6, 1)], last=True)
    assert opened.events == []


def test_a_closed_flow_is_remembered_until_the_peer_has_been_told() -> None:
    outlet = attached()
    outlet.session.detach()
    outlet.session.close(7, CloseReason.RESET)
    # For the supervisor alone: there is no link.
    assert outlet.decoded == [CloseConnection(7, CloseReason.RESET)]
    outlet.sent.clear()
    rows = outlet.session.attach(TERMS, 0, resume=True)
    assert rows == [(7, 0, 0, 4 | CloseReason.RESET << 8)]
    assert 7 in outlet.session.in_use
    outlet.session.resumed([(7, 0, 0, 1)], last=True)
    assert outlet.decoded == [CloseConnection(7, CloseReason.RESET)]
    outlet.session.forget_closed()
    outlet.session.close(8, CloseReason.ORDERLY)
    assert 7 in outlet.session.in_use, "it was closed just before"
    outlet.session.forget_closed()
    assert 7 not in outlet.session.in_use
    assert 8 in outlet.session.in_use


def test_the_memory_of_closed_flows_is_bounded() -> None:
    outlet = attached()
    for conn_id in range(1, CLOSED_REMEMBERED_MAX + 10):
        outlet.session.close(conn_id, CloseReason.ORDERLY)
    assert len(outlet.session.attach(TERMS, 0, resume=True)) == CLOSED_REMEMBERED_MAX


def test_an_opening_is_answered_again_once_after_a_resume() -> None:
    outlet = attached()
    flow = outlet.add(7)
    outlet.session.detach()
    outlet.session.attach(TERMS, 0, resume=True)
    outlet.receive(OPEN.encode())
    outlet.receive(OPEN.encode())
    assert flow.events[-2:] == [OPEN, ("abort", CloseReason.PROTOCOL_ERROR, True)]


@pytest.mark.parametrize("fails", [RemoteProtocolError("a lie", kind="lie"), ValueError("odd")])
def test_a_row_that_lies_costs_its_flow_alone(fails: Exception) -> None:
    outlet = attached()
    liar, other = outlet.add(1), outlet.add(2)
    outlet.session.attach(TERMS, 0, resume=True)
    liar.events.clear()
    liar.fails = fails
    outlet.session.resumed([(1, 9, 9, 1), (2, 1, 2, 1)], last=True)
    assert liar.events[-1][0] == "abort"  # type: ignore[index]  # a tuple, and not the row
    assert other.events[-1] == (1, 2, 1)


def test_a_row_that_comes_twice_costs_its_flow_alone() -> None:
    """Else each of a million rows could make a gateway ask for the flow again."""
    outlet = attached()
    flow, other = outlet.add(7), outlet.add(8)
    outlet.session.detach()
    outlet.session.attach(TERMS, 1000, resume=True)
    outlet.session.resumed([(7, 1, 2, 1), (8, 1, 2, 1), (7, 1, 2, 1)], last=False)
    outlet.session.resumed([(7, 1, 2, 1)], last=True)
    assert outlet.errors == ["resume-twice"]
    assert outlet.said == "RESUME names a flow twice"
    assert [event for event in flow.events if isinstance(event, tuple)] == [
        (1, 2, 1),
        ("abort", CloseReason.PROTOCOL_ERROR, True),
    ]
    assert (1, 2, 1) in other.events
    assert 8 in outlet.session.flows.ids()
    # On the next link it is named again, of course.
    outlet.session.detach()
    outlet.session.attach(TERMS, 1000, resume=True)
    outlet.session.resumed([(8, 3, 4, 1)], last=True)
    assert outlet.errors == ["resume-twice"]
    assert (3, 4, 1) in other.events


def test_the_end_of_a_session_ends_its_flows() -> None:
    outlet = attached()
    flow = outlet.add(7)
    outlet.session.end(CloseReason.SHUTTING_DOWN, tell_peer=True)
    assert flow.events == [("abort", CloseReason.SHUTTING_DOWN, True)]
    assert len(outlet.session.flows) == 0


# --- what a flow raises costs that flow, whoever asked it -----------------------------------------


def test_a_bug_in_a_turn_ends_the_flow_whose_turn_it_was_and_others_transmit() -> None:
    outlet = attached()
    asking, broken, other = (outlet.add(number) for number in (1, 2, 3))
    broken.fails = ValueError("a bug")
    session = outlet.session
    for flow in (broken, other):
        session.scheduler.wait(flow)
    session.grant(1000, 0.0)
    assert outlet.bugs == [broken.fails]
    assert broken.events == ["turn", ("abort", CloseReason.GENERAL_FAILURE, True)]
    assert other.events == ["turn"]
    assert asking.events == []
    assert outlet.decoded == [CloseConnection(2, CloseReason.GENERAL_FAILURE)]


def test_a_bug_of_one_flow_in_a_sweep_or_a_lost_link_is_not_the_others() -> None:
    outlet = attached()
    flows = [outlet.add(number) for number in (1, 2, 3)]
    flows[1].fails = ValueError("a bug")
    for flow in flows:
        outlet.session.guard(flow, flow.sweep, 5.0)
    assert [flow.events[0] for flow in flows] == [5.0, 5.0, 5.0]
    assert outlet.session.flows.ids() == [1, 3]
    flows[0].fails = ValueError("another bug")
    outlet.session.detach()
    assert flows[2].events == [5.0, "detached"]
    assert outlet.session.flows.ids() == [3]


def test_a_flow_that_cannot_even_end_leaves_the_table() -> None:
    outlet = attached()
    broken, other = outlet.add(7), outlet.add(8)
    broken.fails, broken.cannot_end = ValueError("a bug"), OSError("another")
    outlet.session.scheduler.wait(broken)
    outlet.session.receive(memoryview(Data(8, b"x").encode()))
    outlet.session.transmit()
    assert outlet.bugs == [broken.fails, broken.cannot_end]
    assert outlet.decoded == [CloseConnection(7, CloseReason.GENERAL_FAILURE)]
    other.cannot_end = OSError("and this one")
    outlet.session.end(CloseReason.SHUTTING_DOWN, tell_peer=True)
    assert not len(outlet.session.flows)


def test_a_flow_that_fails_at_the_end_of_its_end_is_closed_once() -> None:
    outlet = attached()

    class Leaves(Flow):
        def abort(self, reason: int, *, tell_peer: bool = True) -> None:
            super().abort(reason, tell_peer=tell_peer)
            raise OSError("too late")

    flow = Leaves(outlet, 7)
    flow.fails = ValueError("a bug")
    outlet.session.flows.add(7, flow)
    outlet.receive(Data(7, b"x").encode())
    assert [str(bug) for bug in outlet.bugs] == ["a bug", "too late"]
    assert outlet.named == [7, 7]
    assert outlet.decoded == [CloseConnection(7, CloseReason.GENERAL_FAILURE)]


def test_closed_flows_are_not_forgotten_without_a_link() -> None:
    outlet = attached()
    outlet.session.close(7, CloseReason.ORDERLY)
    outlet.session.forget_closed()
    outlet.session.detach()
    outlet.session.forget_closed()
    assert 7 in outlet.session.in_use
    outlet.session.attach(TERMS, 0, resume=True)
    outlet.session.forget_closed()
    assert 7 in outlet.session.in_use, "this link has not lived long enough yet"
    outlet.session.forget_closed()
    assert 7 not in outlet.session.in_use


# --- questions of the peer: no flows, but their ids are in use -------------------------------------


@pytest.mark.parametrize(
    "again", [OPEN, UdpAssociate(7), Resolve(7, ResolveKind.ADDRESSES, "example.com")]
)
def test_an_opening_with_the_id_of_a_question_ends_the_question(again: Opening) -> None:
    # The supervisor forgets an id with its RESOLVED: a flow of the same id would have no owner.
    outlet = attached()
    given_up: list[int] = []
    outlet.session.questions.add(7, lambda: given_up.append(7))
    outlet.receive(again.encode())
    assert given_up == [7]
    assert outlet.opened == []
    assert outlet.errors == ["flow-exists"]
    assert outlet.said == "CONN_ID 7 cannot be opened: it names a question"
    assert outlet.said_of == 7
    (answer,) = outlet.decoded
    assert isinstance(answer, CloseConnection | UdpAssociateClosed | Resolved)
    assert (answer.conn_id, answer.reason) == (7, CloseReason.PROTOCOL_ERROR)
    assert not outlet.session.questions


def test_a_question_is_given_up_with_its_asker_its_link_or_its_session() -> None:
    outlet = attached()
    given_up: list[int] = []
    for number in (1, 2, 3):
        outlet.session.questions.add(number, partial(given_up.append, number))
    outlet.receive(CloseConnection(1).encode())
    assert given_up == [1]
    outlet.session.detach()
    assert given_up == [1, 2, 3], "they are asked again after a resume"
    outlet.session.questions.add(4, lambda: given_up.append(4))
    outlet.session.questions.add(5, lambda: given_up.append(5))
    outlet.session.questions.remove(5)
    outlet.session.questions.remove(6)
    outlet.session.end(CloseReason.SHUTTING_DOWN, tell_peer=True)
    assert given_up == [1, 2, 3, 4]


# --- the small print ------------------------------------------------------------------------------


def test_a_session_begins_without_a_link() -> None:
    session = Outlet().session
    assert (session.attached, session.resuming, session.terms) == (False, False, None)
    assert (session.attached is False, session.resuming is False) == (True, True)
    assert session.scheduler.chunk == 16_384
    session.resumed([], last=True)
    assert states(session) == (False, False)


def test_a_lost_link_is_no_link() -> None:
    session = attached().session
    session.detach()
    assert (session.attached is False, session.resuming is False) == (True, True)


def test_an_opening_without_a_resume_before_it_is_no_repetition() -> None:
    outlet = Outlet()
    flow = outlet.add(7)
    outlet.receive(OPEN.encode())
    assert flow.events == [("abort", CloseReason.PROTOCOL_ERROR, True)]


def test_errors_and_bugs_name_their_flow() -> None:
    outlet = attached()
    outlet.add(7)
    outlet.receive(message_header(Data.TYPE, 7))
    failing = outlet.add(8)
    failing.fails = ValueError("odd")
    outlet.receive(Data(8, b"x").encode())
    outlet.add(9).fails = ValueError("odd")
    outlet.session.attach(TERMS, 0, resume=True)
    assert outlet.named == [7, 8, 9]
    late = attached()
    late.add(10)
    late.session.attach(TERMS, 0, resume=True)
    late.session.flows.get(10).fails = ValueError("odd")  # type: ignore[union-attr]  # it is there
    late.session.resumed([], last=True)
    assert late.named == [10]
    assert [str(bug) for bug in late.bugs] == ["odd"]


def test_what_a_gateway_refuses_is_said() -> None:
    gateway = attached(opens=True)
    gateway.receive(OPEN.encode())
    assert gateway.said == "OpenConnection came from an endpoint"


def test_an_id_that_is_opened_anew_is_closed_no_more() -> None:
    outlet = attached()
    outlet.session.close(7, CloseReason.RESET)
    outlet.receive(OPEN.encode())
    outlet.session.detach()
    assert outlet.session.attach(TERMS, 0, resume=True) == [(7, 1, 2, 1)]


def test_credit_is_granted_on_top_and_spent_with_the_header() -> None:
    outlet = attached(credit=100)
    outlet.session.grant(50, 0.0)
    assert outlet.session.scheduler.credit == 150
    outlet.session.send_data(message_header(Data.TYPE, 7), b"xyz")
    assert outlet.session.scheduler.credit == 150 - HEADER.size - 3
    assert outlet.decoded == [Data(7, b"xyz")]


def test_each_datagram_without_a_link_is_counted() -> None:
    outlet = Outlet()
    for _ in range(3):
        outlet.session.send_datagram(b"x", 0.0)
    assert outlet.session.scheduler.expired == 3


def test_the_oldest_closed_flow_is_forgotten_first() -> None:
    session = attached().session
    for conn_id in range(1, CLOSED_REMEMBERED_MAX + 2):
        session.close(conn_id, CloseReason.ORDERLY)
    assert 1 not in session.in_use
    assert 2 in session.in_use
    assert CLOSED_REMEMBERED_MAX + 1 in session.in_use


def test_the_end_of_a_flow_suits_its_kind() -> None:
    outlet = attached()
    outlet.session.close(7, CloseReason.IDLE_TIMEOUT, kind=UdpAssociate.TYPE)
    assert outlet.decoded == [UdpAssociateClosed(7, CloseReason.IDLE_TIMEOUT)]


def test_a_session_may_end_without_a_word() -> None:
    outlet = attached()
    flow = outlet.add(7)
    outlet.session.end(CloseReason.RESUME_FAILED, tell_peer=False)
    assert flow.events == [("abort", CloseReason.RESUME_FAILED, False)]
    assert outlet.sent == []


def test_a_guard_calls_with_its_arguments_and_a_bug_costs_the_flow() -> None:
    outlet = attached()
    flow, other = outlet.add(7), outlet.add(8)
    calls: list[object] = []
    outlet.session.guard(flow, calls.append, "argument")
    assert calls == ["argument"]
    assert outlet.bugs == []
    bug = ZeroDivisionError("a bug")

    def fails(*arguments: object) -> None:
        calls.append(arguments)
        raise bug

    outlet.session.guard(flow, fails, 1, 2)
    assert calls[-1] == (1, 2)
    assert outlet.bugs == [bug]
    assert outlet.named == [7]
    assert flow.events == [("abort", CloseReason.GENERAL_FAILURE, True)]
    assert other.events == []


def test_a_bug_of_a_flow_that_has_left_the_table_still_ends_that_flow() -> None:
    outlet = attached()
    flow = outlet.add(7)
    outlet.session.flows.remove(7)
    newer = outlet.add(7)

    def fails() -> None:
        raise ZeroDivisionError

    flow.cannot_end = ValueError("it is gone already")
    outlet.session.guard(flow, fails)
    assert flow.events == [("abort", CloseReason.GENERAL_FAILURE, True)]
    assert newer.events == []
    assert outlet.session.flows.get(7) is newer
    assert [type(bug) for bug in outlet.bugs] == [ZeroDivisionError, ValueError]


def test_an_opening_is_handed_on_whether_or_not_a_link_came_before() -> None:
    outlet = Outlet()
    outlet.receive(OPEN.encode())
    assert outlet.opened == [OPEN]
    assert outlet.bugs == []


def test_a_repetition_that_meets_a_bug_is_answered_once() -> None:
    outlet = attached()
    flow = outlet.add(7)
    outlet.session.attach(TERMS, 1000, resume=True)
    flow.fails = ValueError("a bug")
    outlet.receive(OPEN.encode())
    assert outlet.bugs == [flow.fails]
    assert outlet.decoded == [CloseConnection(7, CloseReason.GENERAL_FAILURE)]


def test_a_flow_that_has_left_the_table_and_fails_is_not_refused_as_an_opening_is() -> None:
    outlet = attached()

    class Leaves(Flow):
        def on_data(self, data: memoryview) -> None:
            self.outlet.session.flows.remove(self.conn_id)
            raise ValueError("too late")

    outlet.session.flows.add(7, Leaves(outlet, 7))
    outlet.receive(Data(7, b"x").encode())
    assert [str(bug) for bug in outlet.bugs] == ["too late"]
    assert outlet.sent == []


def test_a_bug_in_a_turn_ends_the_flow_that_had_it_though_another_has_its_id() -> None:
    outlet = attached()
    flow = outlet.add(7)
    outlet.session.scheduler.wait(flow)
    outlet.session.flows.remove(7)
    newer = outlet.add(7)
    flow.fails, flow.cannot_end = ValueError("a bug"), OSError("it is gone already")
    outlet.session.transmit()
    assert flow.events == ["turn", ("abort", CloseReason.GENERAL_FAILURE, True)]
    assert newer.events == []


def test_the_end_of_a_flow_suits_its_kind_without_a_link_too() -> None:
    outlet = Outlet()
    outlet.session.close(7, CloseReason.IDLE_TIMEOUT, kind=UdpAssociate.TYPE)
    assert outlet.decoded == [UdpAssociateClosed(7, CloseReason.IDLE_TIMEOUT)]


def test_a_closed_flow_whose_id_was_opened_anew_is_forgotten_already() -> None:
    outlet = attached()
    outlet.session.close(7, CloseReason.ORDERLY)
    outlet.session.forget_closed()
    outlet.receive(OPEN.encode())
    outlet.session.forget_closed()
    assert list(outlet.session.closed) == []
