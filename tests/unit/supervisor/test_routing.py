"""A session's routing: ownership, lost workers, batches, unowned flows, bounds."""

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    Attach,
    Credit,
    NewFlows,
    SessionEnded,
    SessionOpened,
)
from socks_tunnel.protocol.messages import (
    Bind,
    CloseConnection,
    ConnectionOpened,
    Data,
    OpenConnection,
    Ping,
    SendEof,
    UdpAssociate,
    UdpAssociateClosed,
    UdpPacket,
    WindowUpdate,
    message_header,
)
from socks_tunnel.supervisor.credit import REVIEW_EVERY
from socks_tunnel.supervisor.router import WorkerRoutes
from socks_tunnel.supervisor.routing import (
    ANSWERS_MAX,
    DATAGRAM_BACKLOG_MAX,
    LINK_BACKLOG_MAX,
    WORKER_BACKLOG_MAX,
)
from unit.supervisor.routing_world import FakeLink, Setup, endpoint, gateway, open_message, terms

# --- ownership ----------------------------------------------------------------------------------


def test_a_gateway_s_flow_belongs_to_the_worker_that_opened_it_until_a_close() -> None:
    setup = gateway()
    setup.say(1, open_message(7))
    assert setup.port.sent == [open_message(7)]
    assert setup.session.flows == 1
    answer = ConnectionOpened(7, HostPort("10.0.0.1", 80)).encode()
    setup.hear(answer)
    setup.hear(Data(7, b"abc").encode())
    close = CloseConnection(7).encode()
    setup.hear(close)
    assert setup.workers[1].messages == [
        (setup.session.number, answer),
        (setup.session.number, Data(7, b"abc").encode()),
        (setup.session.number, close),
    ]
    assert setup.workers[0].messages == []
    assert setup.session.flows == 0


def test_a_worker_s_close_ends_the_flow_and_late_messages_find_nobody() -> None:
    setup = gateway()
    setup.say(0, open_message(2))
    setup.say(0, CloseConnection(2, CloseReason.RESET).encode())
    assert setup.session.flows == 0
    setup.hear(Data(2, b"late").encode())
    setup.hear(CloseConnection(2).encode())
    assert setup.workers[0].messages == []
    assert setup.port.decoded[-1] == CloseConnection(2, CloseReason.UNKNOWN_FLOW)
    assert len(setup.port.sent) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_an_endpoint_spreads_opened_flows_over_its_workers_and_keeps_each_there(count: int) -> None:
    setup = endpoint(count)
    for conn_id in range(1, 2001, 2):
        setup.hear(open_message(conn_id))
        setup.hear(Data(conn_id, b"x").encode())
        expected = setup.workers[setup.worker_of(conn_id)]
        assert expected.messages[-2:] == [
            (setup.session.number, open_message(conn_id)),
            (setup.session.number, Data(conn_id, b"x").encode()),
        ]
    shares = [len(worker.messages) for worker in setup.workers]
    assert min(shares) > 0.5 * max(shares), "odd ids only, and still spread evenly"


@pytest.mark.parametrize(
    ("opening", "closing"),
    [
        (OpenConnection(9, "a.example", 1).encode(), CloseConnection(9).encode()),
        (Bind(9, HostPort("10.0.0.1", 0)).encode(), CloseConnection(9).encode()),
        (UdpAssociate(9).encode(), UdpAssociateClosed(9).encode()),
    ],
)
def test_each_kind_of_flow_is_counted_from_its_opening_to_its_close(
    opening: bytes, closing: bytes
) -> None:
    setup = endpoint()
    setup.hear(opening)
    assert setup.session.flows == 1
    assert setup.session.associations == (opening[0] == 201)
    setup.say(setup.worker_of(9), closing)
    assert (setup.session.flows, setup.session.associations) == (0, 0)


def test_the_same_conn_id_in_two_sessions_is_two_flows() -> None:
    setup = endpoint()
    other = setup.router.attach(FakeLink(), "branch", terms(session=b"o" * 16))
    assert other.session.number != setup.session.number
    setup.hear(open_message(5))
    other.messages([open_message(5)])
    other.messages([CloseConnection(5).encode()])
    assert (setup.session.flows, other.session.flows) == (1, 0)
    assert setup.router.flows == 1


def test_a_worker_that_is_down_is_passed_over_and_the_flow_stays_where_it_went() -> None:
    setup = endpoint(3)
    conn_id = next(i for i in range(1, 100) if setup.worker_of(i) == 1)
    setup.router.worker_down(1)
    setup.hear(open_message(conn_id))
    assert setup.workers[2].messages == [(setup.session.number, open_message(conn_id))]
    setup.restart(1)
    setup.hear(Data(conn_id, b"x").encode())
    assert setup.workers[2].messages[-1] == (setup.session.number, Data(conn_id, b"x").encode())
    setup.hear(CloseConnection(conn_id).encode())
    setup.hear(open_message(conn_id))
    assert setup.workers[1].messages == [(setup.session.number, open_message(conn_id))]


def test_without_any_worker_an_opening_is_refused() -> None:
    setup = endpoint()
    for index in (0, 1):
        setup.router.worker_down(index)
    setup.hear(open_message(3))
    setup.hear(UdpAssociate(4).encode())
    assert setup.port.decoded == [
        CloseConnection(3, CloseReason.WORKER_LOST),
        UdpAssociateClosed(4, CloseReason.WORKER_LOST),
    ]
    assert setup.session.flows == 0


def test_draining_refuses_openings_and_lets_flows_go_on() -> None:
    setup = endpoint()
    setup.hear(open_message(1))
    setup.router.draining = True
    setup.hear(open_message(2))
    assert setup.port.decoded == [CloseConnection(2, CloseReason.SHUTTING_DOWN)]
    setup.hear(Data(1, b"x").encode())
    assert setup.workers[setup.worker_of(1)].messages[-1][1] == Data(1, b"x").encode()


def test_a_link_has_a_bounded_number_of_flows() -> None:
    setup = endpoint(2, flows_per_worker=5)
    for conn_id in range(1, 12):
        setup.hear(open_message(conn_id))
    assert setup.session.flows == 10
    assert setup.port.decoded == [CloseConnection(11, CloseReason.RESOURCE_LIMIT)]


@pytest.mark.parametrize("why", ["draining", "full", "no worker", "gateway", "zero"])
@pytest.mark.parametrize("udp", [False, True])
def test_an_opening_that_is_refused_leaves_nothing_behind(why: str, udp: bool) -> None:
    setup = Setup(opens=why == "gateway", flows_per_worker=0 if why == "full" else 10)
    setup.router.draining = why == "draining"
    if why == "no worker":
        for index in (0, 1):
            setup.router.worker_down(index)
    conn_id = 0 if why == "zero" else 6
    controls = [len(worker.controls) for worker in setup.workers]
    setup.hear(UdpAssociate(conn_id).encode() if udp else open_message(conn_id))
    assert len(setup.port.sent) == (0 if why == "zero" else 1)
    assert (setup.session.flows, setup.session.associations) == (0, 0)
    # What follows it finds nobody, whether or not the refusal has arrived.
    setup.hear(Data(conn_id, b"x").encode(), UdpPacket(conn_id, bytes(10)).encode())
    assert all(worker.batches == [] for worker in setup.workers)
    assert [len(worker.controls) for worker in setup.workers] == controls
    assert setup.port.decoded[-1] == CloseConnection(conn_id, CloseReason.UNKNOWN_FLOW)


# --- batches ------------------------------------------------------------------------------------


def test_what_comes_in_one_batch_reaches_each_worker_in_one_batch_and_in_order() -> None:
    setup = endpoint()
    ours = [n for n in range(1, 40) if setup.worker_of(n) == 0][:3]
    theirs = [n for n in range(1, 40) if setup.worker_of(n) == 1][:3]
    messages = [
        message
        for pair in zip(ours, theirs, strict=True)
        for conn_id in pair
        for message in (open_message(conn_id), Data(conn_id, b"x").encode())
    ]
    setup.hear(*messages, CloseConnection(ours[0]).encode())
    for worker, conn_ids in zip(setup.workers, (ours, theirs), strict=True):
        ((number, batch),) = worker.batches
        assert number == setup.session.number
        own = {conn_id.to_bytes(4) for conn_id in conn_ids}
        assert batch == [m for m in (*messages, CloseConnection(ours[0]).encode()) if m[3:7] in own]
    assert setup.session.flows == 5


def test_what_a_worker_sends_in_one_batch_reaches_the_link_in_one_batch() -> None:
    setup = gateway()
    messages = [open_message(2), Data(2, b"x").encode(), CloseConnection(2).encode()]
    routes = setup.workers[0].routes
    assert routes is not None
    routes.from_worker(setup.session.number, [memoryview(message) for message in messages])
    assert setup.port.batches == [messages]
    assert all(type(message) is bytes for message in setup.port.sent), "the frame is used again"


# --- lost workers -------------------------------------------------------------------------------


def test_a_lost_worker_s_flows_are_closed_at_the_peer_and_no_others() -> None:
    setup = gateway()
    setup.say(0, open_message(2))
    setup.say(0, UdpAssociate(4).encode())
    setup.say(1, open_message(3))
    setup.port.batches.clear()
    assert setup.router.worker_down(0) == 2
    assert setup.port.decoded == [
        CloseConnection(2, CloseReason.WORKER_LOST),
        UdpAssociateClosed(4, CloseReason.WORKER_LOST),
    ]
    assert len(setup.port.batches) == 1
    assert setup.session.flows == 1
    assert setup.router.worker_down(0) == 0, "a second report of the same loss changes nothing"
    setup.hear(Data(3, b"x").encode())
    assert setup.workers[1].messages == [(setup.session.number, Data(3, b"x").encode())]


def test_a_worker_that_starts_learns_of_the_sessions_and_their_links() -> None:
    setup = gateway()
    setup.router.worker_down(0)
    setup.restart(0)
    number = setup.session.number
    (attach,) = setup.workers[0].told(Attach)
    assert (attach.window, attach.max_data, attach.idle_udp) == (262_144, 65_529, 300)
    assert setup.workers[0].controls == [
        (number, SessionOpened("office")),
        (number, attach),
        (0, NewFlows([[[number], []]], [[]])),
    ]


def test_a_link_that_ends_without_resume_ends_its_session() -> None:
    setup = gateway()
    setup.say(0, open_message(2))
    assert setup.router.detach(setup.link, "no answer for 15 s") == 1
    assert setup.router.detach(setup.link, "again") == 0
    for worker in setup.workers:
        assert worker.told(SessionEnded) == [SessionEnded("no answer for 15 s")]
        assert worker.told(NewFlows) == [
            NewFlows([[[], []]], [[]]),
            NewFlows([[[setup.session.number], []]], [[]]),
            NewFlows([[[], []]], [[]]),
        ]
    sent = len(setup.port.sent)
    setup.say(0, Data(2, b"under way").encode())
    setup.link.drained(1_000_000)
    assert len(setup.port.sent) == sent
    assert setup.router.flows == 0
    assert setup.router.worker_down(0) == 0


def test_session_numbers_are_not_reused_soon_and_wrap_past_those_in_use() -> None:
    setup = gateway()
    first = setup.session.number
    setup.router._last_number = 0xFFFE
    numbers = [
        setup.router.attach(FakeLink(), name, terms(session=name.encode() * 16)).session.number
        for name in "pqr"
    ]
    assert numbers == [0xFFFF, first + 1, first + 2]


# --- messages for flows nobody owns -------------------------------------------------------------


@pytest.mark.parametrize("opens", [True, False])
def test_stream_bytes_for_an_unknown_flow_are_answered_and_counted(opens: bool) -> None:
    setup = Setup(opens=opens)
    setup.hear(Data(77, b"x").encode())
    setup.hear(SendEof(78).encode())
    assert setup.port.decoded == [
        CloseConnection(77, CloseReason.UNKNOWN_FLOW),
        CloseConnection(78, CloseReason.UNKNOWN_FLOW),
    ]
    assert setup.total("messages_late") == 2


@pytest.mark.parametrize(
    "message",
    [
        CloseConnection(77).encode(),
        UdpAssociateClosed(77).encode(),
        WindowUpdate(77, 1, 2).encode(),
        ConnectionOpened(77, HostPort("10.0.0.1", 1)).encode(),
        UdpPacket(77, bytes(10)).encode(),
        Ping(bytes(8)).encode(),
        message_header(250, 77),
    ],
)
def test_nothing_else_for_an_unknown_flow_is_answered(message: bytes) -> None:
    setup = endpoint()
    setup.hear(message)
    assert setup.port.sent == []
    assert all(worker.messages == [] for worker in setup.workers)


def test_unowned_messages_are_counted_by_what_they_are() -> None:
    setup = endpoint()
    setup.hear(UdpPacket(77, bytes(10)).encode())
    setup.hear(message_header(250, 77))
    setup.hear(WindowUpdate(77, 1, 2).encode())
    setup.hear(CloseConnection(77).encode())
    assert setup.total("udp_dropped", reason="unknown-flow") == 1
    assert setup.total("messages_unknown") == 1
    assert setup.total("messages_late") == 0


def test_an_endpoint_s_peer_may_not_open_conn_id_zero(caplog: pytest.LogCaptureFixture) -> None:
    setup = endpoint()
    for _ in range(3):
        setup.hear(open_message(0))
    assert setup.port.sent == []
    assert setup.total("protocol_errors", kind="zero-conn-id") == 3
    assert len(caplog.records) == 1


def test_a_gateway_refuses_flows_that_its_peer_opens() -> None:
    setup = gateway()
    setup.hear(open_message(4))
    setup.hear(UdpAssociate(6).encode())
    assert setup.port.decoded == [
        CloseConnection(4, CloseReason.PROTOCOL_ERROR),
        UdpAssociateClosed(6, CloseReason.PROTOCOL_ERROR),
    ]
    assert setup.total("protocol_errors", kind="unexpected-open") == 2


def test_answers_to_a_peer_that_reads_nothing_are_bounded() -> None:
    setup = endpoint()
    data, answer = Data(77, b"x").encode(), CloseConnection(77, CloseReason.UNKNOWN_FLOW).encode()
    for _ in range(2 * ANSWERS_MAX // len(answer)):
        setup.hear(data)
    assert ANSWERS_MAX <= len(answer) * len(setup.port.sent) < ANSWERS_MAX + len(answer)
    setup.link.drained(len(answer) * len(setup.port.sent))
    before = len(setup.port.sent)
    setup.hear(data)
    assert len(setup.port.sent) == before + 1


# --- what ends a worker or a link ---------------------------------------------------------------


def test_a_worker_that_sends_no_message_ends_its_channel() -> None:
    setup = gateway()
    with pytest.raises(RemoteProtocolError, match="header"):
        setup.say(0, b"\x69\0\0\0\0\0")


def test_a_message_that_the_link_cannot_take_ends_the_worker_and_not_the_link() -> None:
    setup = gateway()
    setup.port.refuses = "over the peer's limit"
    with pytest.raises(RemoteProtocolError, match="limit"):
        setup.say(0, Data(1, b"x").encode())


def test_a_worker_that_only_receives_is_told_the_round_trip() -> None:
    """Its windows grow by it, and it may need no credit for the whole of a download."""
    setup = endpoint(1)
    worker = setup.workers[0]
    setup.hear(open_message(1))
    setup.port.rtt = 0.08
    for _ in range(3):
        setup.say(0, WindowUpdate(1, 0, 1).encode())
        setup.link.drained(23)
    assert [(c.count, c.round_trip) for c in worker.told(Credit)] == [(0, 80_000)]
    setup.port.rtt = 0.3  # a queue, or a longer path: that shows later
    setup.now += REVIEW_EVERY
    setup.link.drained(0)
    setup.port.rtt = 0.04
    setup.now += REVIEW_EVERY
    setup.link.drained(0)
    assert [c.round_trip for c in worker.told(Credit)] == [80_000, 40_000]


def test_datagrams_overtake_what_waits_for_a_worker_that_does_not_read() -> None:
    setup = endpoint(1)
    worker = setup.workers[0]
    setup.hear(open_message(1))
    setup.hear(UdpAssociate(2).encode())
    worker.batches.clear()
    worker.paused, worker.buffered = True, WORKER_BACKLOG_MAX
    datagram = UdpPacket(2, bytes(10)).encode()
    setup.hear(datagram, Data(1, b"x").encode())
    assert worker.overtaking == [datagram]
    assert [message[0] for _, message in worker.messages] == [Data.TYPE]
    assert setup.total("udp_dropped", reason="worker-busy") == 0


def test_of_datagrams_for_a_worker_that_does_not_read_a_bounded_number_waits() -> None:
    setup = endpoint(1)
    worker = setup.workers[0]
    setup.hear(UdpAssociate(2).encode())
    worker.paused = True
    for _ in range(30):
        setup.hear(UdpPacket(2, bytes(50_000)).encode())
    assert DATAGRAM_BACKLOG_MAX <= worker.urgent < DATAGRAM_BACKLOG_MAX + 51_000
    assert setup.total("udp_dropped", reason="worker-busy") == 30 - len(worker.overtaking)


def test_a_peer_that_ignores_its_windows_has_its_link_closed_once() -> None:
    setup = endpoint(1)
    setup.hear(open_message(1))
    setup.workers[0].paused, setup.workers[0].buffered = True, WORKER_BACKLOG_MAX + 1
    for _ in range(3):
        setup.hear(Data(1, b"x").encode())
    assert len(setup.workers[0].messages) == 1
    assert len(setup.abuses) == 1
    assert setup.abuses[0].startswith("office: ")
    assert "windows" in setup.abuses[0]


def test_a_peer_that_provokes_answers_and_reads_nothing_has_its_link_closed_once() -> None:
    setup = endpoint(1)
    close = CloseConnection(1, CloseReason.RESOURCE_LIMIT).encode()
    setup.session.workers[0].share.outstanding = LINK_BACKLOG_MAX
    setup.say(0, close)
    setup.say(0, close)
    assert len(setup.abuses) == 1
    assert "does not read" in setup.abuses[0]


def test_routes_of_a_worker_without_links_drop_everything() -> None:
    WorkerRoutes().from_worker(1, [memoryview(open_message(1))])


def test_credit_is_shared_by_the_flows_that_workers_tell() -> None:
    setup = Setup(opens=True)
    one, many = setup.workers
    for index, flows in enumerate((1, 3)):
        routes = setup.workers[index].routes
        assert routes is not None
        routes.demanded(setup.session.number, flows)
    for worker in setup.workers:
        worker.controls.clear()
    held = setup.link.credit.limit
    for index in (0, 1):
        setup.say(index, Data(index + 1, bytes(held)).encode())
    for _ in range(400):
        before = [sum(credit.count for credit in worker.told(Credit)) for worker in setup.workers]
        setup.link.drained(1_000)
        for index, worker in enumerate(setup.workers):
            new = sum(credit.count for credit in worker.told(Credit)) - before[index]
            if new:
                setup.say(index, Data(index + 1, bytes(new - 7)).encode())
    given = [sum(credit.count for credit in worker.told(Credit)) for worker in (one, many)]
    assert given[1] == pytest.approx(3 * given[0], rel=0.1)


def test_a_number_of_flows_is_bounded_and_one_of_an_earlier_link_is_ignored() -> None:
    setup = Setup(opens=True, count=1, flows_per_worker=10, resume=True)
    worker = setup.workers[0]
    assert worker.routes is not None
    worker.routes.demanded(setup.session.number, 1_000)
    share = setup.session.workers[0].share
    assert share.flows == 10
    worker.routes.demanded(setup.session.number, -1)
    assert share.flows == 0
    worker.routes.demanded(999, 5)
    setup.router.detach(setup.link, "gone")
    worker.routes.demanded(setup.session.number, 5)
    assert share.flows == 0
