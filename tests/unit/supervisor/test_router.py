"""Routing and credit: ownership, lost workers, unowned flows, FIFO arithmetic, bounds."""

import random
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.messages import (
    Bind,
    CloseConnection,
    ConnectionOpened,
    Data,
    Message,
    OpenConnection,
    Ping,
    SendEof,
    UdpAssociate,
    UdpAssociateClosed,
    UdpPacket,
    WindowUpdate,
    decode,
    message_header,
    mix32,
)
from socks_tunnel.supervisor import router
from socks_tunnel.supervisor.router import (
    ANSWERS_MAX,
    DATAGRAM_BACKLOG_MAX,
    LINK_BACKLOG_MAX,
    WORKER_BACKLOG_MAX,
    RoutedLink,
    Router,
    WorkerRoutes,
)

CREDIT_PER_LINK, CREDIT_MIN = 131_072, 32_768
FIELDS = {"peer": "office", "rank": 0, "window": 262_144}


@pytest.fixture(autouse=True)
def known_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the arithmetic below independent of how the daemon is tuned."""
    monkeypatch.setattr(router, "CREDIT_PER_LINK", CREDIT_PER_LINK)
    monkeypatch.setattr(router, "CREDIT_MIN", CREDIT_MIN)


class FakeWorker:
    def __init__(self) -> None:
        self.messages: list[tuple[int, bytes]] = []
        self.controls: list[tuple[int, dict[str, Any]]] = []
        self.paused = False
        self.buffered = 0

    def send_message(self, link: int, message: bytes) -> None:
        self.messages.append((link, message))

    def send_control(self, link: int, fields: dict[str, Any]) -> None:
        self.controls.append((link, fields))

    @property
    def credits(self) -> list[int]:
        return [fields["bytes"] for _, fields in self.controls if fields["op"] == "credit"]


class FakeLink:
    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.up = True
        self.on_send: Callable[[bytes], None] | None = None

    def send(self, message: bytes) -> bool:
        if not self.up:
            return False
        self.sent.append(message)
        if self.on_send is not None:
            self.on_send(message)
        return True

    @property
    def decoded(self) -> list[Message]:
        return [decode(message) for message in self.sent]


class Setup:
    def __init__(self, *, opens: bool, count: int = 2, flows_per_worker: int = 1000) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self.abuses: list[str] = []
        self.router = Router(
            opens=opens,
            worker_count=count,
            flows_per_worker=flows_per_worker,
            metrics=Metrics(self.registry),
            on_abuse=lambda link, reason: self.abuses.append(f"{link.peer}: {reason}"),
        )
        self.workers = [FakeWorker() for _ in range(count)]
        self.routes = [self.router.worker_up(i, worker) for i, worker in enumerate(self.workers)]
        self.port = FakeLink()
        self.link = self.router.link_up(self.port, "office", FIELDS)

    def restart(self, index: int) -> None:
        self.workers[index] = FakeWorker()
        self.routes[index] = self.router.worker_up(index, self.workers[index])

    def worker_of(self, conn_id: int, link: RoutedLink | None = None) -> int:
        link = link or self.link
        return mix32(conn_id ^ mix32(link.id)) % len(self.workers)

    def say(self, index: int, message: bytes, link: RoutedLink | None = None) -> None:
        self.routes[index].from_worker((link or self.link).id, memoryview(message))

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
    assert setup.link.flows == 1
    answer = ConnectionOpened(7, HostPort("10.0.0.1", 80)).encode()
    setup.link.from_link(answer)
    setup.link.from_link(Data(7, b"abc").encode())
    close = CloseConnection(7).encode()
    setup.link.from_link(close)
    assert setup.workers[1].messages == [
        (setup.link.id, answer),
        (setup.link.id, Data(7, b"abc").encode()),
        (setup.link.id, close),
    ]
    assert setup.workers[0].messages == []
    assert setup.link.flows == 0


def test_a_worker_s_close_ends_the_flow_and_late_messages_find_nobody() -> None:
    setup = gateway()
    setup.say(0, open_message(2))
    setup.say(0, CloseConnection(2, CloseReason.RESET).encode())
    assert setup.link.flows == 0
    setup.link.from_link(Data(2, b"late").encode())
    setup.link.from_link(CloseConnection(2).encode())
    assert setup.workers[0].messages == []
    assert setup.port.decoded[-1] == CloseConnection(2, CloseReason.UNKNOWN_FLOW)
    assert len(setup.port.sent) == 3


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_an_endpoint_spreads_opened_flows_over_its_workers_and_keeps_each_there(count: int) -> None:
    setup = endpoint(count)
    for conn_id in range(1, 2001, 2):
        setup.link.from_link(open_message(conn_id))
        setup.link.from_link(Data(conn_id, b"x").encode())
        expected = setup.workers[setup.worker_of(conn_id)]
        assert expected.messages[-2:] == [
            (setup.link.id, open_message(conn_id)),
            (setup.link.id, Data(conn_id, b"x").encode()),
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
    setup.link.from_link(opening)
    assert setup.link.flows == 1
    assert setup.link.associations == (opening[0] == 201)
    setup.say(setup.worker_of(9), closing)
    assert (setup.link.flows, setup.link.associations) == (0, 0)


def test_the_same_conn_id_on_two_links_is_two_flows() -> None:
    setup = endpoint()
    other_port = FakeLink()
    other = setup.router.link_up(other_port, "branch", FIELDS)
    assert other.id != setup.link.id
    setup.link.from_link(open_message(5))
    other.from_link(open_message(5))
    other.from_link(CloseConnection(5).encode())
    assert (setup.link.flows, other.flows) == (1, 0)
    assert setup.router.flows == 1


def test_a_worker_that_is_down_is_passed_over_and_the_flow_stays_where_it_went() -> None:
    setup = endpoint(3)
    conn_id = next(i for i in range(1, 100) if setup.worker_of(i) == 1)
    setup.router.worker_down(1)
    setup.link.from_link(open_message(conn_id))
    assert setup.workers[2].messages == [(setup.link.id, open_message(conn_id))]
    setup.restart(1)
    setup.link.from_link(Data(conn_id, b"x").encode())
    assert setup.workers[2].messages[-1] == (setup.link.id, Data(conn_id, b"x").encode())
    setup.link.from_link(CloseConnection(conn_id).encode())
    setup.link.from_link(open_message(conn_id))
    assert setup.workers[1].messages == [(setup.link.id, open_message(conn_id))]


def test_without_any_worker_an_opening_is_refused() -> None:
    setup = endpoint()
    for index in (0, 1):
        setup.router.worker_down(index)
    setup.link.from_link(open_message(3))
    setup.link.from_link(UdpAssociate(4).encode())
    assert setup.port.decoded == [
        CloseConnection(3, CloseReason.WORKER_LOST),
        UdpAssociateClosed(4, CloseReason.WORKER_LOST),
    ]
    assert setup.link.flows == 0


def test_draining_refuses_openings_and_lets_flows_go_on() -> None:
    setup = endpoint()
    setup.link.from_link(open_message(1))
    setup.router.draining = True
    setup.link.from_link(open_message(2))
    assert setup.port.decoded == [CloseConnection(2, CloseReason.SHUTTING_DOWN)]
    setup.link.from_link(Data(1, b"x").encode())
    assert setup.workers[setup.worker_of(1)].messages[-1][1] == Data(1, b"x").encode()


def test_a_link_has_a_bounded_number_of_flows() -> None:
    setup = endpoint(2, flows_per_worker=5)
    for conn_id in range(1, 12):
        setup.link.from_link(open_message(conn_id))
    assert setup.link.flows == 10
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
    assert setup.link.flows == 1
    assert setup.router.worker_down(0) == 0, "a second report of the same loss changes nothing"
    setup.link.from_link(Data(3, b"x").encode())
    assert setup.workers[1].messages == [(setup.link.id, Data(3, b"x").encode())]


def test_a_worker_that_starts_learns_of_the_links_that_are_up() -> None:
    setup = gateway()
    setup.link.goaway()
    setup.router.worker_down(0)
    setup.restart(0)
    grant = CREDIT_PER_LINK // 2
    assert setup.workers[0].controls == [
        (setup.link.id, {"op": "link-up", **FIELDS, "credit": grant}),
        (setup.link.id, {"op": "link-goaway"}),
    ]
    assert setup.workers[1].controls[-1] == (setup.link.id, {"op": "link-goaway"})


def test_a_link_that_ends_is_told_to_all_workers_and_forgotten() -> None:
    setup = gateway()
    setup.say(0, open_message(2))
    setup.router.link_down(setup.link, "no answer for 15 s")
    setup.router.link_down(setup.link, "again")
    for worker in setup.workers:
        assert worker.controls[-1] == (
            setup.link.id,
            {"op": "link-down", "reason": "no answer for 15 s"},
        )
        assert len(worker.controls) == 2
    sent = len(setup.port.sent)
    setup.say(0, Data(2, b"under way").encode())
    setup.link.drained(1_000_000)
    assert len(setup.port.sent) == sent
    assert setup.router.flows == 0
    assert setup.router.worker_down(0) == 0


def test_link_ids_are_not_reused_soon_and_wrap_past_those_in_use() -> None:
    setup = gateway()
    first = setup.link.id
    setup.router._last_id = 0xFFFE
    ids = [setup.router.link_up(FakeLink(), "p", FIELDS).id for _ in range(3)]
    assert ids == [0xFFFF, first + 1, first + 2]


# --- messages for flows nobody owns -------------------------------------------------------------


@pytest.mark.parametrize("opens", [True, False])
def test_stream_bytes_for_an_unknown_flow_are_answered_and_counted(opens: bool) -> None:
    setup = Setup(opens=opens)
    setup.link.from_link(Data(77, b"x").encode())
    setup.link.from_link(SendEof(78).encode())
    assert setup.port.decoded == [
        CloseConnection(77, CloseReason.UNKNOWN_FLOW),
        CloseConnection(78, CloseReason.UNKNOWN_FLOW),
    ]
    assert setup.total("protocol_errors", kind="unknown-flow") == 2


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
    setup.link.from_link(message)
    assert setup.port.sent == []
    assert all(worker.messages == [] for worker in setup.workers)


def test_unowned_messages_are_counted_by_what_they_are() -> None:
    setup = endpoint()
    setup.link.from_link(UdpPacket(77, bytes(10)).encode())
    setup.link.from_link(message_header(250, 77))
    setup.link.from_link(WindowUpdate(77, 1, 2).encode())
    setup.link.from_link(CloseConnection(77).encode())
    assert setup.total("udp_dropped", reason="unknown-flow") == 1
    assert setup.total("messages_unknown") == 1
    assert setup.total("protocol_errors", kind="unknown-flow") == 0


def test_an_endpoint_s_peer_may_not_open_conn_id_zero(caplog: pytest.LogCaptureFixture) -> None:
    setup = endpoint()
    for _ in range(3):
        setup.link.from_link(open_message(0))
    assert setup.port.sent == []
    assert setup.total("protocol_errors", kind="zero-conn-id") == 3
    assert len(caplog.records) == 1


def test_a_gateway_refuses_flows_that_its_peer_opens() -> None:
    setup = gateway()
    setup.link.from_link(open_message(4))
    setup.link.from_link(UdpAssociate(6).encode())
    assert setup.port.decoded == [
        CloseConnection(4, CloseReason.PROTOCOL_ERROR),
        UdpAssociateClosed(6, CloseReason.PROTOCOL_ERROR),
    ]
    assert setup.total("protocol_errors", kind="unexpected-open") == 2


def test_answers_to_a_peer_that_reads_nothing_are_bounded() -> None:
    setup = endpoint()
    data, answer = Data(77, b"x").encode(), CloseConnection(77, CloseReason.UNKNOWN_FLOW).encode()
    for _ in range(2 * ANSWERS_MAX // len(answer)):
        setup.link.from_link(data)
    assert ANSWERS_MAX <= len(answer) * len(setup.port.sent) < ANSWERS_MAX + len(answer)
    setup.link.drained(len(answer) * len(setup.port.sent))
    before = len(setup.port.sent)
    setup.link.from_link(data)
    assert len(setup.port.sent) == before + 1


# --- credit -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "grant"), [(1, CREDIT_PER_LINK), (2, CREDIT_PER_LINK // 2), (8, CREDIT_MIN)]
)
def test_the_grant_divides_the_link_among_the_workers_down_to_a_minimum(
    count: int, grant: int
) -> None:
    setup = gateway(count)
    for worker in setup.workers:
        assert worker.controls == [(setup.link.id, {"op": "link-up", **FIELDS, "credit": grant})]


def test_credit_comes_back_as_bytes_leave_the_link_a_quarter_of_the_grant_at_a_time() -> None:
    setup = gateway(1)
    worker, batch = setup.workers[0], CREDIT_PER_LINK // 4
    setup.say(0, open_message(1))
    data = Data(1, bytes(8_000)).encode()
    for _ in range(10):
        setup.say(0, data)
    sent = sum(map(len, setup.port.sent))
    setup.link.drained(batch - 1)
    assert worker.credits == [], "less than a quarter is due"
    setup.link.drained(sent - (batch - 1))
    assert all(credit >= batch for credit in worker.credits)
    assert sent - sum(worker.credits) < batch


def test_only_whole_messages_count_and_rests_are_carried() -> None:
    setup = gateway(1)
    setup.say(0, open_message(1))
    size = len(open_message(1))
    data = Data(1, bytes(CREDIT_PER_LINK // 4)).encode()
    setup.say(0, data)
    for _ in range(size + len(data) - 1):
        setup.link.drained(1)
    assert setup.workers[0].credits == []
    setup.link.drained(1)
    assert setup.workers[0].credits == [size + len(data)]


def test_credit_goes_to_whoever_sent_what_has_left_and_none_for_our_own_messages() -> None:
    setup = gateway(2)
    batch = CREDIT_PER_LINK // 8
    first = Data(1, bytes(batch)).encode()
    second = Data(2, bytes(batch + 5)).encode()
    setup.say(1, first)
    setup.link.from_link(Data(99, b"x").encode())
    setup.say(0, second)
    assert len(setup.port.sent) == 3
    setup.link.drained(len(first))
    assert (setup.workers[0].credits, setup.workers[1].credits) == ([], [len(first)])
    setup.link.drained(len(setup.port.sent[1]))
    assert setup.workers[0].credits == []
    setup.link.drained(len(second))
    assert setup.workers[0].credits == [len(second)]


def test_a_restarted_worker_gets_a_new_grant_and_nothing_for_what_the_old_one_sent() -> None:
    setup = gateway(1)
    setup.say(0, Data(1, bytes(60_000)).encode())
    setup.router.worker_down(0)
    setup.restart(0)
    setup.link.drained(60_007)
    assert setup.workers[0].credits == []
    setup.say(0, Data(3, bytes(60_000)).encode())
    setup.link.drained(60_007)
    assert setup.workers[0].credits == [60_007]


def test_what_the_link_drops_is_credited_at_once() -> None:
    setup = gateway(1)
    setup.port.up = False
    setup.say(0, Data(1, bytes(60_000)).encode())
    assert setup.workers[0].credits == [60_007]
    setup.port.up = True
    setup.say(0, Data(1, bytes(60_000)).encode())
    setup.link.drained(60_007)
    assert setup.workers[0].credits == [60_007, 60_007]


def test_a_link_that_drains_while_it_sends_keeps_the_books_straight() -> None:
    setup = gateway(1)
    setup.port.on_send = lambda message: setup.link.drained(len(message))
    for _ in range(4):
        setup.say(0, Data(1, bytes(60_000)).encode())
    assert setup.workers[0].credits == [60_007] * 4


def test_random_traffic_never_loses_or_invents_credit() -> None:
    rng = random.Random(4711)
    setup = gateway(3)
    grant = CREDIT_PER_LINK // 3
    credit = [grant] * 3
    waiting: list[int] = []
    for _ in range(5_000):
        index = rng.randrange(3)
        if credit[index] > 0 and rng.random() < 0.6:
            message = Data(index + 1, bytes(rng.randrange(1, 5_000))).encode()
            credit[index] -= len(message)
            waiting.append(len(message))
            setup.say(index, message)
        elif waiting:
            count = rng.randrange(1, sum(waiting) + 1)
            setup.link.drained(count)
            while waiting and waiting[0] <= count:
                count -= waiting.pop(0)
            if waiting:
                waiting[0] -= count
        for number, worker in enumerate(setup.workers):
            credit[number] += sum(worker.credits)
            worker.controls.clear()
            assert credit[number] <= grant
    setup.link.drained(sum(waiting))
    for number, worker in enumerate(setup.workers):
        assert credit[number] + sum(worker.credits) > 3 * grant // 4


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


def test_datagrams_for_a_worker_that_does_not_read_are_dropped_and_stream_bytes_are_not() -> None:
    setup = endpoint(1)
    worker = setup.workers[0]
    setup.link.from_link(open_message(1))
    setup.link.from_link(UdpAssociate(2).encode())
    worker.messages.clear()
    worker.paused, worker.buffered = True, DATAGRAM_BACKLOG_MAX + 1
    setup.link.from_link(UdpPacket(2, bytes(10)).encode())
    setup.link.from_link(Data(1, b"x").encode())
    assert [message[0] for _, message in worker.messages] == [Data.TYPE]
    assert setup.total("udp_dropped", reason="worker-busy") == 1
    worker.buffered = DATAGRAM_BACKLOG_MAX
    setup.link.from_link(UdpPacket(2, bytes(10)).encode())
    assert [message[0] for _, message in worker.messages] == [Data.TYPE, UdpPacket.TYPE]


def test_a_peer_that_ignores_its_windows_has_its_link_closed_once() -> None:
    setup = endpoint(1)
    setup.link.from_link(open_message(1))
    setup.workers[0].paused, setup.workers[0].buffered = True, WORKER_BACKLOG_MAX + 1
    for _ in range(3):
        setup.link.from_link(Data(1, b"x").encode())
    assert len(setup.workers[0].messages) == 1
    assert len(setup.abuses) == 1
    assert setup.abuses[0].startswith("office: ")
    assert "windows" in setup.abuses[0]


def test_a_peer_that_provokes_answers_and_reads_nothing_has_its_link_closed_once() -> None:
    setup = endpoint(1)
    close = CloseConnection(1, CloseReason.RESOURCE_LIMIT).encode()
    share = setup.link._shares[0]
    share.outstanding = LINK_BACKLOG_MAX
    setup.say(0, close)
    setup.say(0, close)
    assert len(setup.abuses) == 1
    assert "does not read" in setup.abuses[0]


def test_routes_of_a_worker_without_links_drop_everything() -> None:
    WorkerRoutes().from_worker(1, memoryview(open_message(1)))
