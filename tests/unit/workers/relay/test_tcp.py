"""A TCP flow between a socket and the tunnel: windows, credit, both ends of file, every kind of end."""

from __future__ import annotations

import errno
import logging
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ipc import Attach, Credit
from socks_tunnel.protocol.messages import (
    Bind,
    BindAccepted,
    BindListening,
    CloseConnection,
    ConnectionOpened,
    Data,
    Message,
    OpenConnection,
    SendEof,
    WindowUpdate,
)
from socks_tunnel_workers.relay.tcp import (
    CHUNK,
    FINISHED_IDLE_MAX,
    HALF_CLOSED_IDLE_MAX,
    LINGER_IDLE_MAX,
    TAIL_SECONDS,
    TcpRelay,
)
from unit.workers.frontends.fakes import Gateway, Sock

BOUND = HostPort("192.0.2.9", 4000)
CALLER = HostPort("10.0.0.7", 20)
WINDOW = 262_144


class Client:
    """The client's side of a flow that waits for its answer."""

    def __init__(self, sock: Sock) -> None:
        self.sock = sock
        self.told: list[tuple[str, object]] = []
        self.flow: TcpRelay

    def opened(self, bound: HostPort) -> None:
        self.told.append(("opened", bound))
        self.flow.attach(cast("Any", self.sock))

    def listening(self, bound: HostPort) -> None:
        self.told.append(("listening", bound))

    def failed(self, reason: int) -> None:
        self.told.append(("failed", reason))


class Site:
    """One flow of a gateway, with the client's socket, and the peer's messages at hand."""

    def __init__(
        self, *, window: int = WINDOW, command: str = "connect", early: bytes = b"", **tables: Any
    ) -> None:
        self.gateway = Gateway(**tables)
        self.session = self.gateway.session(window=window)
        self.sock = Sock(self.gateway.loop)
        self.client = Client(self.sock)
        self.conn_id = self.session.allocate()
        opening: OpenConnection | Bind = OpenConnection(self.conn_id, "10.0.0.1", 80)
        if command == "bind":
            opening = Bind(self.conn_id, HostPort("10.0.0.1", 80))
        self.flow = TcpRelay(
            self.session,
            self.conn_id,
            command=command,
            client="127.0.0.1:5",
            destination=HostPort("10.0.0.1", 80),
            opener=self.client,
            opening=opening.encode(),
        )
        self.client.flow = self.flow
        self.session.admit(self.flow)
        self.flow.ask()
        assert self.sent() == [opening]
        if early:
            self.flow.write_early(early)

    def sent(self) -> list[Message]:
        return self.gateway.sent(self.session)

    def answer(self, *messages: Message) -> None:
        self.gateway.answer(self.session, *messages)

    def open(self) -> Site:
        self.answer(ConnectionOpened(self.conn_id, BOUND))
        assert self.client.told == [("opened", BOUND)]
        return self

    def data(self) -> bytes:
        """The stream bytes that were sent since the last look; nothing else was sent."""
        messages = self.sent()
        assert all(isinstance(message, Data) for message in messages), messages
        return b"".join(bytes(message.data) for message in messages if isinstance(message, Data))

    def advance(self, seconds: float) -> None:
        """Time passes without a sign of anybody, and the sweep comes by."""
        self.gateway.loop.now += seconds
        self.flow.sweep(self.gateway.loop.now)

    @property
    def cost(self) -> int:
        return self.gateway.memory.used

    def is_closed(self) -> bool:
        return self.sock.closed

    def was_shut(self) -> bool:
        """Whether the socket was told that no more bytes come."""
        return self.sock.ended


# --- opening ------------------------------------------------------------------------------------


def test_the_socket_is_read_when_the_far_side_is_connected() -> None:
    site = Site()
    assert site.sock not in site.gateway.loop.readers
    site.open()
    site.sock.arrives(b"hello")
    assert site.data() == b"hello"
    site.answer(Data(site.conn_id, b"welcome"))
    assert site.sock.sent == b"welcome"
    assert (site.flow.up, site.flow.down) == (5, 7)


def test_early_data_goes_as_far_as_the_window_and_follows() -> None:
    site = Site(window=3, early=b"abcdefg")
    assert site.data() == b"abc"
    assert site.cost > 0
    site.answer(WindowUpdate(site.conn_id, 3, 5))
    assert site.data() == b"de"
    site.open()
    site.answer(WindowUpdate(site.conn_id, 5, 100))
    assert site.data() == b"fg"
    site.answer(WindowUpdate(site.conn_id, 7, 100))
    assert site.cost == 0


def test_a_refusal_leaves_the_socket_to_the_client_s_side() -> None:
    site = Site(early=b"words")
    site.sent()
    site.answer(CloseConnection(site.conn_id, CloseReason.CONNECTION_REFUSED))
    assert site.client.told == [("failed", CloseReason.CONNECTION_REFUSED)]
    assert not site.is_closed()
    assert site.flow.sock is None
    assert site.cost == 0
    assert len(site.session.core.flows) == 0


def test_an_answer_that_comes_twice_ends_the_flow() -> None:
    site = Site().open()
    site.answer(ConnectionOpened(site.conn_id, BOUND))
    assert site.sent() == [CloseConnection(site.conn_id, CloseReason.PROTOCOL_ERROR)]
    assert site.sock.reset


def test_a_bind_has_two_answers() -> None:
    site = Site(command="bind")
    site.answer(BindListening(site.conn_id, BOUND))
    assert site.sock not in site.gateway.loop.readers
    site.answer(BindAccepted(site.conn_id, CALLER))
    assert site.client.told == [("listening", BOUND), ("opened", CALLER)]
    assert site.flow.destination == CALLER
    site.sock.arrives(b"x")
    assert site.data() == b"x"


@pytest.mark.parametrize("command", ["connect", "bind"])
def test_an_answer_to_something_else_is_refused(command: str) -> None:
    site = Site(command=command)
    wrong = BindListening if command == "connect" else ConnectionOpened
    site.answer(wrong(site.conn_id, BOUND))
    assert site.client.told == [("failed", CloseReason.PROTOCOL_ERROR)]


# --- local socket -> tunnel -----------------------------------------------------------------------


def test_a_window_that_is_used_up_stops_the_reading() -> None:
    site = Site(window=10).open()
    site.sock.incoming.append(b"0123456789abcdef")
    site.sock.turn()
    assert site.data() == b"0123456789"
    assert site.sock not in site.gateway.loop.readers
    assert site.sock.incoming == [b"abcdef"]
    site.answer(WindowUpdate(site.conn_id, 10, 30))
    site.sock.turn()
    assert site.data() == b"abcdef"


def test_without_credit_nothing_is_read_and_a_grant_goes_on() -> None:
    site = Site().open()
    site.session.core.scheduler.credit = 10
    site.sock.incoming.append(bytes(2 * CHUNK))
    site.sock.turn()
    assert len(site.data()) == CHUNK, "one message may overdraw the credit"
    assert site.sock not in site.gateway.loop.readers
    site.session.grant(Credit(1 << 20, CHUNK, 0))
    site.sock.turn()
    assert len(site.data()) == CHUNK


def test_bytes_are_kept_until_the_peer_has_consumed_them() -> None:
    site = Site().open()
    site.sock.arrives(bytes(5000))
    assert site.cost >= 5000
    assert site.flow.held == site.cost
    site.answer(WindowUpdate(site.conn_id, 5000, WINDOW))
    assert site.cost == 0


def test_a_short_memory_holds_the_reading_back() -> None:
    site = Site(limits={"memory_per_worker": 16 << 20}).open()
    other = site.gateway.memory.charge()
    other.set(15 << 20)
    site.sock.incoming.append(bytes(200_000))
    site.sock.turn()
    assert len(site.data()) == 65_536
    assert site.sock not in site.gateway.loop.readers
    other.end()
    site.answer(WindowUpdate(site.conn_id, 1, WINDOW))  # releases bytes, opens nothing
    site.sock.turn()
    assert len(site.data()) == 200_000 - 65_536


def test_an_end_of_file_follows_the_last_byte() -> None:
    site = Site(window=3).open()
    site.sock.arrives(b"abc")
    assert site.data() == b"abc"
    site.answer(WindowUpdate(site.conn_id, 3, 6))
    site.sock.arrives(b"")
    assert site.sent() == [SendEof(site.conn_id)]
    assert site.flow.state == "half-closed (local)"
    assert not site.is_closed()
    site.answer(Data(site.conn_id, b"still"))
    assert site.sock.sent == b"still"


@pytest.mark.parametrize(
    ("code", "warned"), [(errno.ECONNRESET, False), (errno.EPIPE, False), (errno.EIO, True)]
)
def test_a_socket_that_fails_is_a_reset(
    code: int, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site().open()
    site.sock.incoming.append(OSError(code, "failed"))
    site.sock.turn()
    assert site.sent() == [CloseConnection(site.conn_id, CloseReason.RESET)]
    assert site.sock.reset
    assert site.is_closed()
    assert bool(caplog.records) is warned


# --- tunnel -> local socket -----------------------------------------------------------------------


def test_what_the_socket_does_not_take_waits_and_opens_no_window() -> None:
    site = Site().open()
    site.sock.room = 4
    site.answer(Data(site.conn_id, b"abcdef"), Data(site.conn_id, b"ghi"))
    assert site.sock.sent == b"abcd"
    assert site.flow.core.receive.consumed == 4
    assert site.cost >= 5
    site.sock.takes(100)
    assert site.sock.sent == b"abcdefghi"
    assert site.cost == 0
    assert site.sock not in site.gateway.loop.writers


def test_half_a_window_that_was_consumed_is_announced() -> None:
    site = Site().open()
    window = site.session.receive_window
    site.answer(*(Data(site.conn_id, bytes(32_768)) for _ in range(window // 2 // 32_768)))
    (update,) = site.sent()
    assert isinstance(update, WindowUpdate)
    assert update.consumed == window // 2
    assert update.limit >= window // 2 + window


def test_the_tail_of_a_quiet_stream_is_acknowledged() -> None:
    site = Site().open()
    site.answer(Data(site.conn_id, b"tail"))
    assert site.sent() == []
    site.advance(TAIL_SECONDS + 0.1)
    (update,) = site.sent()
    assert isinstance(update, WindowUpdate)
    assert update.consumed == 4
    site.advance(TAIL_SECONDS + 0.1)
    assert site.sent() == []


def test_the_peer_s_end_of_file_waits_for_the_bytes_before_it() -> None:
    site = Site().open()
    site.sock.room = 1
    site.answer(Data(site.conn_id, b"abc"), SendEof(site.conn_id))
    assert not site.was_shut()
    site.sock.takes(10)
    assert site.sock.sent == b"abc"
    assert site.was_shut()
    assert not site.is_closed()


@pytest.mark.parametrize("first", ["client", "target"])
def test_a_flow_whose_both_ends_came_is_closed_in_order(first: str) -> None:
    site = Site().open()
    site.sock.arrives(b"question")
    if first == "client":
        site.sock.arrives(b"")
    site.answer(SendEof(site.conn_id))
    if first == "target":
        site.sock.arrives(b"")
    assert site.is_closed()
    assert not site.sock.reset
    assert CloseConnection(site.conn_id, CloseReason.ORDERLY) not in site.sent()
    assert len(site.session.core.flows) == 1, "the peer still has to say that it has everything"
    site.answer(WindowUpdate(site.conn_id, 8, WINDOW))
    assert site.sent() == [CloseConnection(site.conn_id, CloseReason.ORDERLY)]
    assert len(site.session.core.flows) == 0
    assert site.cost == 0


def test_a_peer_that_never_says_so_is_not_waited_for_for_ever() -> None:
    site = Site().open()
    site.sock.arrives(b"")
    site.answer(SendEof(site.conn_id))
    # Nothing is owed: it is closed at once.
    assert site.sent()[-1] == CloseConnection(site.conn_id, CloseReason.ORDERLY)
    site = Site().open()
    site.sock.arrives(b"x")
    site.sock.arrives(b"")
    site.answer(SendEof(site.conn_id))
    site.sent()
    site.advance(FINISHED_IDLE_MAX + 1)
    assert site.sent() == [], "with resume, an hour"
    site.advance(HALF_CLOSED_IDLE_MAX + 1)
    assert site.sent() == [CloseConnection(site.conn_id, CloseReason.ORDERLY)]


def test_a_close_says_what_a_window_update_would() -> None:
    site = Site().open()
    site.sock.arrives(b"")
    assert site.sent() == [SendEof(site.conn_id)]
    site.answer(Data(site.conn_id, b"answer"), SendEof(site.conn_id))
    assert site.sent() == [CloseConnection(site.conn_id, CloseReason.ORDERLY)]
    assert site.sock.sent == b"answer"
    assert site.is_closed()
    assert not site.sock.ended, "the end of the connection is its end of file too"


def test_a_socket_that_is_lost_while_bytes_are_written_is_a_reset() -> None:
    site = Site().open()
    site.sock.room = 0
    site.answer(Data(site.conn_id, b"abc"))
    site.sock.error = errno.ECONNRESET
    site.sock.takes(1)
    assert site.sent() == [CloseConnection(site.conn_id, CloseReason.RESET)]
    assert site.sock.reset
    assert site.cost == 0


# --- the end --------------------------------------------------------------------------------------


def test_a_reset_of_the_peer_resets_the_socket() -> None:
    site = Site().open()
    site.answer(CloseConnection(site.conn_id, CloseReason.RESET))
    assert site.sock.reset
    assert site.is_closed()
    assert site.sent() == []


def test_an_orderly_close_owes_the_socket_what_came_before() -> None:
    site = Site().open()
    site.sock.room = 0
    site.answer(
        Data(site.conn_id, b"abc"),
        CloseConnection(site.conn_id, CloseReason.ORDERLY),
    )
    assert not site.is_closed()
    assert site.flow in site.session.lingering
    site.sock.takes(10)
    assert site.sock.sent == b"abc"
    assert site.is_closed()
    assert not site.sock.reset
    assert site.flow not in site.session.lingering
    assert site.cost == 0


def test_what_is_owed_to_a_socket_that_takes_nothing_is_dropped_in_time() -> None:
    site = Site().open()
    site.sock.room = 0
    site.answer(Data(site.conn_id, b"abc"), CloseConnection(site.conn_id, CloseReason.ORDERLY))
    site.advance(LINGER_IDLE_MAX - 1)
    assert not site.is_closed()
    site.advance(2)
    assert site.sock.reset
    assert site.cost == 0
    assert not site.session.lingering


@pytest.mark.parametrize(("idle", "ends"), [(59, False), (61, True)])
def test_an_idle_flow_ends_by_the_setting(idle: float, *, ends: bool) -> None:
    site = Site(socks={"idle_tcp": 60}).open()
    site.advance(idle)
    assert site.sock.reset is ends
    assert bool(site.sent()) is ends


def test_a_reset_is_found_though_nobody_reads() -> None:
    site = Site(window=1).open()
    site.sock.arrives(b"x")
    assert site.sock not in site.gateway.loop.readers
    site.sock.error = errno.ECONNRESET
    site.advance(0.1)
    assert site.sent()[-1] == CloseConnection(site.conn_id, CloseReason.RESET)


# --- a lost link ----------------------------------------------------------------------------------


def attach(site: Site, *rows: tuple[int, int, int, int]) -> None:
    site.session.attach(
        Attach(
            window=WINDOW, max_data=65_529, idle_udp=300, features=["resume"], credit=1 << 20,
            resume=True,
        )
    )  # fmt: skip
    site.session.resumed(list(rows), last=True)


def test_what_the_peer_lacks_is_sent_again_on_the_next_link() -> None:
    site = Site().open()
    site.sock.arrives(b"0123456789")
    assert site.data() == b"0123456789"
    site.session.detach()
    assert site.sock not in site.gateway.loop.readers
    attach(site, (site.conn_id, 4, WINDOW, 1))
    assert site.data() == b"456789"
    site.sock.arrives(b"more")
    assert site.data() == b"more"


def test_an_opening_that_was_lost_is_sent_again_with_its_early_data() -> None:
    site = Site(early=b"early")
    assert site.data() == b"early"
    site.session.detach()
    attach(site)
    opening, data = site.sent()
    assert opening == OpenConnection(site.conn_id, "10.0.0.1", 80)
    assert data == Data(site.conn_id, b"early")
    site.open()
    site.answer(ConnectionOpened(site.conn_id, BOUND))  # the first answer was not lost after all
    assert site.client.told == [("opened", BOUND)]


def test_a_flow_that_the_peer_has_lost_ends() -> None:
    site = Site().open()
    site.session.detach()
    attach(site)
    assert site.sock.reset
    assert site.flow.ended


def test_the_end_of_file_is_sent_again_if_it_was_lost() -> None:
    site = Site().open()
    site.sock.arrives(b"x")
    site.sock.arrives(b"")
    site.sent()
    site.session.detach()
    attach(site, (site.conn_id, 1, WINDOW, 1))
    assert site.sent() == [SendEof(site.conn_id)]


def test_a_lie_about_what_was_received_ends_the_flow(caplog: pytest.LogCaptureFixture) -> None:
    site = Site().open()
    site.session.detach()
    with caplog.at_level(logging.ERROR):
        attach(site, (site.conn_id, 99, WINDOW, 1))
    assert site.sock.reset
    assert site.sent() == [CloseConnection(site.conn_id, CloseReason.PROTOCOL_ERROR)]
