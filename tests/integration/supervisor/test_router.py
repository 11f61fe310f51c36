"""Routing: ownership, lost workers, links that come and go, unowned flows, bounds."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import pytest
from prometheus_client import CollectorRegistry

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    Attach,
    Attached,
    Control,
    Credit,
    Detach,
    NewFlows,
    PeerRows,
    SessionEnded,
    SessionOpened,
)
from socks_tunnel.protocol.messages import (
    RESUME_ROWS_MAX,
    Bind,
    CloseConnection,
    ConnectionOpened,
    Data,
    Message,
    OpenConnection,
    Ping,
    Resume,
    SendEof,
    UdpAssociate,
    UdpAssociateClosed,
    UdpPacket,
    WindowUpdate,
    decode,
    message_header,
    mix32,
)
from socks_tunnel.supervisor.ports import LinkTerms
from socks_tunnel.supervisor.router import RESUME_SECONDS, Router, Waiting, WorkerRoutes
from socks_tunnel.supervisor.routing import (
    ANSWERS_MAX,
    DATAGRAM_BACKLOG_MAX,
    LINK_BACKLOG_MAX,
    PEER_ROWS_SPARE,
    WORKER_BACKLOG_MAX,
    RoutedSession,
)

C = TypeVar("C")


def terms(*, session: bytes = b"s" * 16, resume: bool = False, rank: int = 0) -> LinkTerms:
    features = ("udp", "bind", "resume") if resume else ("udp", "bind")
    return LinkTerms(session, 262_144, 65_529, 300, features, resume, rank)


class FakeWorker:
    """A worker that answers each attach with the rows that it was given."""

    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes]] = []
        self.controls: list[tuple[int, Control]] = []
        self.paused = False
        self.buffered = 0
        self.urgent = 0
        self.overtaking: list[bytes] = []
        self.routes: WorkerRoutes | None = None
        self.rows: list[list[int]] = []
        self.silent = False

    def send_messages(self, session: int, messages: Sequence[bytes]) -> None:
        self.messages += [(session, message) for message in messages]

    def send_urgent(self, session: int, messages: Sequence[bytes]) -> None:
        self.overtaking += messages
        self.urgent += sum(map(len, messages))

    def send_control(self, session: int, message: Control) -> None:
        self.controls.append((session, message))
        if isinstance(message, Attach) and not self.silent:
            self.answer(session)

    def answer(self, session: int) -> None:
        if self.routes is not None:
            self.routes.attached(session, Attached(self.rows, last=True))

    def told(self, kind: type[C]) -> list[C]:
        return [message for _, message in self.controls if isinstance(message, kind)]


class FakeLink:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.resumes: list[Resume] = []
        self.rtt: float | None = None

        self.on_send: Callable[[bytes], None] | None = None

    def send_many(self, messages: list[bytes]) -> None:
        for message in messages:
            self.sent.append(message)
            if self.on_send is not None:
                self.on_send(message)

    def send_resume(self, resume: Resume) -> None:
        self.resumes.append(resume)

    @property
    def decoded(self) -> list[Message]:
        return [decode(message) for message in self.sent]


class Setup:
    def __init__(
        self, *, opens: bool, count: int = 2, flows_per_worker: int = 1000, resume: bool = False
    ) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.abuses: list[str] = []
        self.router = Router(
            opens=opens,
            worker_count=count,
            flows_per_worker=flows_per_worker,
            metrics=Metrics(self.registry),
            on_abuse=lambda link, reason: self.abuses.append(f"{link.session.peer}: {reason}"),
            resume_timeout=60.0 if resume else 0.0,
        )
        self.workers = [FakeWorker() for _ in range(count)]
        for index in range(count):
            self._up(index)
        self.resume = resume
        self.relink()

    def relink(self) -> None:
        """Another link of the peer comes up."""
        self.port = FakeLink()
        self.link = self.router.attach(self.port, "office", terms(resume=self.resume))
        self.settle()

    def settle(self) -> None:
        """Lets the workers answer what they were asked while they had no routes yet."""
        for worker in self.workers:
            if not worker.silent:
                worker.answer(self.session.number)

    def _up(self, index: int) -> None:
        worker = self.workers[index]
        worker.routes = WorkerRoutes(self.router, index)
        self.router.worker_up(index, worker)

    @property
    def session(self) -> RoutedSession:
        return self.link.session

    def restart(self, index: int) -> None:
        self.workers[index] = FakeWorker()
        self._up(index)

    def worker_of(self, conn_id: int) -> int:
        return mix32(conn_id ^ mix32(self.session.number)) % len(self.workers)

    def say(self, index: int, message: bytes) -> None:
        routes = self.workers[index].routes
        assert routes is not None
        routes.from_worker(self.session.number, [memoryview(message)])

    def hear(self, *messages: bytes) -> None:
        """The peer sends messages, in one batch."""
        self.link.messages(list(messages))

    def total(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"socks_tunnel_{name}_total", labels) or 0.0


def endpoint(count: int = 2, flows_per_worker: int = 1000) -> Setup:
    return Setup(opens=False, count=count, flows_per_worker=flows_per_worker)


def gateway(count: int = 2) -> Setup:
    return Setup(opens=True, count=count)


def open_message(conn_id: int) -> bytes:
    return OpenConnection(conn_id, "example.com", 80).encode()


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


# --- lost workers -------------------------------------------------------------------------------


def test_a_lost_worker_s_flows_are_closed_at_the_peer_and_no_others() -> None:
    setup = gateway()
    setup.say(0, open_message(2))
    setup.say(0, UdpAssociate(4).encode())
    setup.say(1, open_message(3))
    setup.port.sent.clear()
    assert setup.router.worker_down(0) == 2
    assert setup.port.decoded == [
        CloseConnection(2, CloseReason.WORKER_LOST),
        UdpAssociateClosed(4, CloseReason.WORKER_LOST),
    ]
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
        (0, NewFlows([[[number], []]])),
    ]


def test_a_link_that_ends_without_resume_ends_its_session() -> None:
    setup = gateway()
    setup.say(0, open_message(2))
    assert setup.router.detach(setup.link, "no answer for 15 s") == 1
    assert setup.router.detach(setup.link, "again") == 0
    for worker in setup.workers:
        assert worker.told(SessionEnded) == [SessionEnded("no answer for 15 s")]
        assert worker.told(NewFlows) == [
            NewFlows([[[], []]]),
            NewFlows([[[setup.session.number], []]]),
            NewFlows([[[], []]]),
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


# --- new flows ----------------------------------------------------------------------------------


def test_new_flows_go_to_the_first_configured_peer_whose_link_takes_them() -> None:
    setup = gateway()
    first = setup.session.number
    second = setup.router.attach(FakeLink(), "b", terms(session=b"b" * 16, rank=1))
    assert setup.router.target == first
    setup.link.goaway()
    assert setup.router.target == second.session.number
    setup.router.detach(second, "gone")
    assert setup.router.target == 0
    assert [message.targets for message in setup.workers[1].told(NewFlows)] == [
        [[[], []]],
        [[[first], []]],
        [[[first, second.session.number], []]],
        [[[second.session.number], []]],
        [[[], []]],
    ]


# --- resume -------------------------------------------------------------------------------------


def resuming(*, opens: bool = True, count: int = 2) -> Setup:
    return Setup(opens=opens, count=count, resume=True)


def test_both_sides_say_on_each_link_where_they_are() -> None:
    setup = resuming()
    assert setup.port.resumes == [Resume((), last=True)]
    setup.say(0, open_message(2))
    setup.say(1, open_message(3))
    assert setup.router.detach(setup.link, "cut") == 0
    assert [worker.told(Detach) for worker in setup.workers] == [[Detach("")], [Detach("")]]
    setup.workers[0].rows = [[2, 10, 20, 1]]
    setup.workers[1].rows = [[3, 30, 40, 3]]
    setup.relink()
    assert setup.port.resumes == [Resume(((2, 10, 20, 1), (3, 30, 40, 3)), last=True)]


def test_flows_wait_for_the_next_link_and_new_ones_for_the_end_of_the_resume() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.router.detach(setup.link, "cut")
    assert setup.router.target == 0
    assert setup.router.detached == [setup.session]
    session = setup.session
    setup.relink()
    assert setup.session is session
    assert setup.router.target == 0
    setup.link.resume(Resume(((2, 5, 6, 1),), last=False))
    assert setup.router.target == 0
    setup.link.resume(Resume((), last=True))
    assert setup.router.target == session.number
    assert setup.workers[0].told(PeerRows) == [PeerRows([[2, 5, 6, 1]], False), PeerRows([], True)]
    assert setup.workers[1].told(PeerRows) == [PeerRows([], True)]
    assert setup.total("resumes", result="resumed") == 1


def test_what_a_worker_sends_before_it_has_seen_the_new_link_is_dropped() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.workers[0].silent = True
    setup.relink()
    setup.say(0, Data(2, b"for the old link").encode())
    assert setup.port.sent == []
    assert setup.port.resumes == [], "not before all workers have told their rows"
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.workers[0].answer(setup.session.number)
    setup.say(0, Data(2, b"for this one").encode())
    assert setup.port.sent == [Data(2, b"for this one").encode()]
    assert len(setup.port.resumes) == 1


def test_a_newer_link_takes_over_and_the_older_one_carries_nothing_any_more() -> None:
    setup = resuming(opens=False)
    setup.hear(open_message(2))
    older = setup.link
    setup.workers[setup.worker_of(2)].rows = [[2, 0, 20, 1]]
    setup.relink()
    assert setup.link.replaced is older
    seen = [len(worker.messages) for worker in setup.workers]
    older.messages([Data(2, b"late").encode()])
    assert [len(worker.messages) for worker in setup.workers] == seen
    assert setup.router.detach(older, "replaced") == 0
    setup.hear(Data(2, b"x").encode())
    assert [len(worker.messages) for worker in setup.workers] != seen


def test_a_flow_of_the_peer_that_is_unknown_here_is_closed() -> None:
    setup = resuming(opens=False)
    setup.link.resume(Resume(((7, 0, 9, 1), (8, 0, 9, 0), (9, 0, 0, 4)), last=True))
    assert setup.port.decoded == [CloseConnection(7, CloseReason.RESUME_FAILED)]


def test_the_table_follows_what_a_worker_tells_of_its_flows() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.say(0, open_message(4))
    setup.router.detach(setup.link, "cut")
    setup.workers[0].rows = [[4, 0, 1, 1], [6, 0, 1, 0], [2, 0, 0, 4]]
    setup.relink()
    setup.hear(Data(2, b"x").encode(), Data(4, b"y").encode(), Data(6, b"z").encode())
    assert [m for _, m in setup.workers[0].messages] == [
        Data(4, b"y").encode(),
        Data(6, b"z").encode(),
    ]


def test_a_flow_that_the_peer_opens_before_a_worker_has_answered_the_attach_lives() -> None:
    setup = resuming(opens=False, count=1)
    setup.workers[0].silent = True
    setup.relink()
    setup.hear(open_message(2))
    setup.workers[0].answer(setup.session.number)
    setup.hear(Data(2, b"x").encode())
    assert [m for _, m in setup.workers[0].messages] == [open_message(2), Data(2, b"x").encode()]
    assert setup.port.sent == []


def test_a_worker_that_dies_while_rows_are_awaited_holds_nobody_up() -> None:
    setup = resuming()
    setup.workers[0].silent = True
    setup.relink()
    assert setup.port.resumes == []
    setup.router.worker_down(0)
    assert setup.port.resumes == [Resume((), last=True)]


def test_a_session_that_nobody_comes_back_to_ends_in_time() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    began = setup.session.detached_at
    assert began is not None
    setup.router.tick(began + 59)
    assert setup.router.flows == 1
    setup.router.tick(began + 61)
    assert setup.router.flows == 0
    assert setup.workers[0].told(SessionEnded) != []
    assert setup.total("resumes", result="given-up") == 1


def test_what_waits_is_told_with_the_time_that_it_has_left() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.say(0, open_message(3))
    assert setup.router.waiting("office", 0.0) is None
    setup.router.detach(setup.link, "cut")
    since = setup.session.detached_at
    assert since is not None
    assert setup.router.waiting("office", since + 20) == Waiting(2, 20.0, 40.0)
    assert setup.router.waiting("another", since + 20) is None
    assert setup.registry.get_sample_value("socks_tunnel_sessions_detached") == 1
    # An application has left meanwhile: its flow waits no more.
    setup.say(0, CloseConnection(2).encode())
    assert setup.router.waiting("office", since + 70) == Waiting(1, 70.0, 0.0)
    assert setup.port.sent == [open_message(2), open_message(3)]
    setup.workers[0].rows = [[3, 0, 20, 1]]
    setup.relink()
    assert setup.router.waiting("office", since + 20) is None
    assert setup.registry.get_sample_value("socks_tunnel_sessions_detached") == 0


def test_a_resume_is_logged_with_the_time_since_the_loss(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    assert setup.session.detached_at is not None
    setup.session.detached_at -= 31.4
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.relink()
    setup.link.resume(Resume(((2, 0, 20, 1),), last=True))
    assert "session with office: resumed 1 flows 31.4 s after their link was lost" in caplog.text
    assert setup.total("resumes", result="resumed") == 1
    assert setup.registry.get_sample_value("socks_tunnel_resume_seconds_count") == 1
    caplog.clear()
    setup.relink()
    setup.link.resume(Resume(((2, 0, 20, 1),), last=True))
    assert "resumed 1 flows whose link was replaced" in caplog.text


def test_a_session_whose_flows_have_all_ended_is_not_given_up() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.say(0, CloseConnection(2).encode())
    setup.router.forget_peer("office", "a test")
    assert setup.total("resumes", result="given-up") == 0


def test_a_peer_that_never_ends_its_resume_has_its_link_closed() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.workers[0].rows = [[2, 0, 20, 1]]
    setup.relink()
    setup.router.tick(setup.link.since + RESUME_SECONDS - 1)
    assert setup.abuses == []
    setup.router.tick(setup.link.since + RESUME_SECONDS + 1)
    setup.router.tick(setup.link.since + RESUME_SECONDS + 2)
    assert len(setup.abuses) == 1


def test_resume_after_its_last_part_is_an_error_of_the_peer() -> None:
    setup = resuming()
    setup.link.resume(Resume((), last=True))
    setup.link.resume(Resume((), last=True))
    assert setup.total("protocol_errors", kind="second-resume") == 1


def test_a_peer_that_sends_rows_without_end_has_its_link_closed_once() -> None:
    setup = Setup(opens=False, flows_per_worker=10, resume=True)
    setup.hear(open_message(2))
    rows = tuple((conn_id, 0, 0, 1) for conn_id in range(3, 3 + RESUME_ROWS_MAX))
    told = len(setup.workers[0].controls)
    for _ in range(500):
        setup.link.resume(Resume(rows, last=False))
    assert len(setup.abuses) == 1
    assert "rows came in RESUME" in setup.abuses[0]
    assert setup.total("protocol_errors", kind="resume-rows") > 400
    assert len(setup.workers[0].controls) == told
    # What is answered for flows that nobody has is bounded as well.
    assert sum(map(len, setup.port.sent)) < ANSWERS_MAX + 100
    assert setup.session.flows == 1


def test_rows_as_many_as_a_peer_can_have_are_taken() -> None:
    setup = Setup(opens=False, flows_per_worker=10, resume=True)
    most = 2 * 20 + PEER_ROWS_SPARE
    for start in range(0, most, 1000):
        part = range(start, min(start + 1000, most))
        closed = tuple((conn_id + 1, 0, 0, 4) for conn_id in part)
        setup.link.resume(Resume(closed, last=part[-1] == most - 1))
    assert setup.abuses == []
    assert setup.link.resumed


def test_our_own_rows_are_never_more_than_a_peer_takes() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.say(1, open_message(3))
    setup.router.detach(setup.link, "cut")
    for index, worker in enumerate(setup.workers):
        closed = range(10 + index, 10 + 2 * PEER_ROWS_SPARE, 2)
        worker.rows = [[2 + index, 0, 9, 1], *([conn_id, 0, 0, 4] for conn_id in closed)]
    setup.relink()
    rows = [row for resume in setup.port.resumes for row in resume.rows]
    assert len(rows) == 2 + PEER_ROWS_SPARE
    assert {row[0] for row in rows if row[3] & 1} == {2, 3}
    assert [resume.last for resume in setup.port.resumes] == [False] * 2 + [True]


def test_rows_of_flows_that_are_another_peer_s_touch_nothing_of_theirs() -> None:
    setup = Setup(opens=False, count=1, resume=True)
    setup.hear(open_message(2))
    theirs = setup.session
    other = FakeLink()
    stranger = setup.router.attach(other, "stranger", terms(session=b"t" * 16, resume=True))
    told = len([1 for number, _ in setup.workers[0].controls if number == theirs.number])
    stranger.resume(Resume(((2, 5, 5, 1),), last=True))
    assert other.decoded == [CloseConnection(2, CloseReason.RESUME_FAILED)]
    assert theirs.flows == 1
    assert len([1 for number, _ in setup.workers[0].controls if number == theirs.number]) == told


def test_another_session_of_a_peer_ends_the_one_before() -> None:
    setup = resuming(opens=False)
    setup.hear(open_message(2))
    before = setup.session
    setup.router.attach(FakeLink(), "office", terms(session=b"n" * 16, resume=True))
    assert before.number not in setup.router.sessions
    assert setup.router.flows == 0


def test_a_peer_that_is_removed_loses_its_session_also_without_a_link() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.router.forget_peer("office", "removed")
    assert setup.router.sessions == {}
    assert setup.workers[0].told(SessionEnded) == [SessionEnded("removed")]


def test_a_drain_ends_sessions_that_no_link_will_come_for() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.detach(setup.link, "cut")
    setup.router.drain()
    assert setup.router.sessions == {}
    assert len(setup.workers[0].told(SessionEnded)) == 1


def test_a_drain_keeps_no_session_for_a_link_that_will_not_come() -> None:
    setup = resuming()
    setup.say(0, open_message(2))
    setup.router.draining = True
    assert setup.router.detach(setup.link, "cut") == 1
    assert setup.router.sessions == {}


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

    def too_long(message: bytes) -> None:
        raise LocalProtocolError("over the peer's limit")

    setup.port.on_send = too_long
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
    setup.link.drained(0)
    setup.port.rtt = 0.04
    setup.link.drained(0)
    assert [c.round_trip for c in worker.told(Credit)] == [80_000, 40_000]


def test_datagrams_overtake_what_waits_for_a_worker_that_does_not_read() -> None:
    setup = endpoint(1)
    worker = setup.workers[0]
    setup.hear(open_message(1))
    setup.hear(UdpAssociate(2).encode())
    worker.messages.clear()
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
