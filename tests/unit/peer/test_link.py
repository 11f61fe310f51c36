"""The shell of a link, over transports in memory and with time that the tests move."""

import logging
from typing import Any

import pytest

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.peer.link import Link
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.keepalive import ASK_AFTER, PONG_AFTER
from socks_tunnel.protocol.messages import (
    Data,
    Goaway,
    Hello,
    OpenConnection,
    Ping,
    Resume,
    UdpPacket,
    message_header,
)
from support.memory_transport import MemoryNetwork, VirtualClock, Wire, finish


def hello(**changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "version": 1,
        "software": "test",
        "session": bytes(16),
        "window": 262_144,
        "max_data": 65_529,
    }
    return Hello(**(fields | changes))


@pytest.fixture(autouse=True)
def no_known_bugs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What another test has provoked is news again."""
    monkeypatch.setattr("socks_tunnel.peer.link._bugs", BugLog())


class Owner:
    """Writes down what a link says."""

    def __init__(self, clock: VirtualClock) -> None:
        self.clock = clock
        self.calls: list[tuple[float, str, Any]] = []
        self.messages: list[bytes] = []
        self.raises: Exception | None = None
        self.raises_in = ""
        """The call in which it raises, besides those of the peer's messages."""

    def _note(self, call: str, value: Any = None) -> None:
        assert "down" not in self.names, f"{call} after the end"
        self.calls.append((self.clock.time(), call, value))
        if call == self.raises_in and self.raises is not None:
            raise self.raises

    @property
    def names(self) -> list[str]:
        return [call for _, call, _ in self.calls]

    def values(self, name: str) -> list[Any]:
        return [value for _, call, value in self.calls if call == name]

    def link_up(self) -> None:
        self._note("up")

    def link_messages(self, messages: list[bytes]) -> None:
        self._note("messages", len(messages))
        self.messages += messages
        if self.raises is not None:
            raise self.raises

    def link_drained(self, drained: int) -> None:
        self._note("drained", drained)

    def link_resume(self, resume: Resume) -> None:
        self._note("resume", resume)
        if self.raises is not None:
            raise self.raises

    def link_goaway(self, reason: int) -> None:
        self._note("goaway", reason)

    def link_suspected(self, seconds: float) -> None:
        self._note("suspected", round(seconds, 3))

    def link_trusted(self) -> None:
        self._note("trusted")

    def link_down(self, reason: str) -> None:
        self._note("down", reason)


class Site:
    """A gateway's and an endpoint's link over one wire."""

    def __init__(self, *, features: tuple[str, ...] = (), **options: Any) -> None:
        self.clock = VirtualClock()
        self.wire = Wire(self.clock, **options)
        self.left, self.right = Owner(self.clock), Owner(self.clock)
        self.kinds: list[str] = []
        self.rtts: list[float] = []
        self.unknown = 0
        self.gateway = Link(
            self.left,
            self.wire.gateway,
            name="office",
            hello=hello(features=features),
            clock=self.clock,
        )
        self.endpoint = Link(
            self.right,
            self.wire.endpoint,
            name="laptop",
            hello=hello(features=features, session=b"another session!"),
            clock=self.clock,
            on_protocol_error=self.kinds.append,
            on_unknown=self._count,
            on_rtt=self.rtts.append,
        )

    def _count(self) -> None:
        self.unknown += 1

    def connect(self) -> "Site":
        self.wire.connect()
        self.clock.until(lambda: "up" in self.left.names and "up" in self.right.names)
        return self

    def control(self, message: bytes) -> None:
        """Lets a message of the gateway's come on `control` of which its link knows nothing."""
        self.wire.endpoint.arrive("control", message)


def data(conn_id: int, size: int = 1) -> bytes:
    return Data(conn_id, bytes(size)).encode()


# --- a life -------------------------------------------------------------------------------------


def test_a_whole_life() -> None:
    site = Site(delay=0.05).connect()
    assert site.endpoint.protocol.hello.session == bytes(16)  # the gateway's
    assert site.gateway.state == site.endpoint.state == "up"
    site.gateway.send_many([data(1), data(1, 2), UdpPacket(2, b"x").encode()])
    site.clock.advance(0.2)
    assert site.right.messages == [data(1), data(1, 2), UdpPacket(2, b"x").encode()]
    assert site.right.values("messages") == [3]  # one call
    assert sum(site.left.values("drained")) == sum(map(len, site.right.messages))
    assert site.rtts == [pytest.approx(0.1)]
    site.gateway.goaway(0x12)
    site.clock.advance(0.2)
    assert site.right.values("goaway") == [0x12]
    finish(site.gateway.close("enough"))
    assert site.left.values("down") == ["enough"]
    site.clock.advance(1)
    assert site.right.values("down") == ["the peer closed the connection"]
    assert site.left.names.count("down") == site.right.names.count("down") == 1


def test_it_is_made_by_offer_and_answer() -> None:
    clock = VirtualClock()
    network = MemoryNetwork(clock)
    left, right = Owner(clock), Owner(clock)
    there, here = network.transport("gateway"), network.transport("endpoint")
    gateway = Link(left, there, name="office", hello=hello(), clock=clock)
    endpoint = Link(right, here, name="laptop", hello=hello(), clock=clock)
    offer = finish(gateway.create_offer())
    assert gateway.state == "connecting"
    finish(gateway.accept_answer(finish(endpoint.accept_offer(offer))))
    clock.until(lambda: "up" in left.names and "up" in right.names)


def up_after(*, early: bool) -> tuple[float, float]:
    """Returns after how many seconds gateway and endpoint are up, on a path of 50 ms each way."""
    clock = VirtualClock()
    network = MemoryNetwork(clock, delay=0.05)
    left, right = Owner(clock), Owner(clock)
    there = network.transport("gateway", sends_early=early)
    gateway = Link(left, there, name="office", hello=hello(), clock=clock)
    endpoint = Link(right, network.transport("endpoint"), name="laptop", hello=hello(), clock=clock)
    offer = finish(gateway.create_offer())
    begun = clock.time()
    finish(gateway.accept_answer(finish(endpoint.accept_offer(offer))))
    clock.until(lambda: "up" in right.names)
    at_endpoint = clock.time() - begun
    clock.until(lambda: "up" in left.names)
    assert not gateway.protocol.errors
    assert not endpoint.protocol.errors
    return clock.time() - begun, at_endpoint


def test_a_hello_behind_the_opening_of_the_channels_saves_a_round_trip() -> None:
    """The channels take a round trip, and HELLO takes another one if it waits for them."""
    assert up_after(early=False) == pytest.approx((0.2, 0.15))
    assert up_after(early=True) == pytest.approx((0.1, 0.05))


def test_messages_that_overtake_hello_come_after_up() -> None:
    site = Site(delay=0.01)
    site.wire.connect()
    site.clock.until(lambda: site.wire.gateway.state == "up")
    early = [OpenConnection(n, "example.com", 80).encode() for n in (1, 2)]
    site.wire.gateway.send_many(early)  # HELLO is on its way already
    site.wire.endpoint.arrive("lane-0", data(9))
    site.clock.until(lambda: len(site.right.messages) == 3)
    assert site.right.messages == [data(9), *early]
    assert site.right.names[0] == "up"


# --- sending ------------------------------------------------------------------------------------


def test_before_and_after_nothing_is_sent() -> None:
    site = Site()
    site.gateway.send_many([data(1)])
    site.connect()
    site.gateway.send_many([data(2)])
    site.clock.advance(1)
    finish(site.gateway.close("enough"))
    site.gateway.send_many([data(3)])
    site.gateway.goaway(1)
    site.clock.advance(1)
    assert site.right.messages == [data(2)]


@pytest.mark.parametrize(
    "bad", [b"", b"\x69", hello().encode(), Ping(bytes(8)).encode(), Goaway(1).encode()]
)
def test_what_is_no_flow_message_is_our_bug_and_nothing_of_it_is_sent(bad: bytes) -> None:
    site = Site().connect()
    with pytest.raises(LocalProtocolError):
        site.gateway.send_many([data(1), bad])
    site.clock.advance(1)
    assert site.right.messages == []
    assert site.gateway.state == "up"


def test_resume_goes_through_if_it_was_agreed_upon() -> None:
    site = Site(features=("resume",)).connect()
    site.gateway.send_resume(Resume())
    site.clock.advance(1)
    assert site.right.values("resume") == [Resume()]
    site = Site().connect()
    with pytest.raises(LocalProtocolError, match="not agreed"):
        site.gateway.send_resume(Resume())


# --- silence ------------------------------------------------------------------------------------


def test_an_idle_link_lives_and_measures() -> None:
    site = Site(delay=0.03).connect()
    site.clock.advance(600)
    assert site.gateway.state == site.endpoint.state == "up"
    assert len(site.rtts) > 100
    assert site.rtts == [pytest.approx(0.06)] * len(site.rtts)
    assert "suspected" not in site.left.names + site.right.names


def test_a_black_hole_is_suspected_soon_and_ends_the_link_later() -> None:
    site = Site().connect()
    site.clock.advance(3)
    site.wire.cut()
    cut = site.clock.time()
    site.gateway.send_many([data(1)])
    site.clock.until(lambda: "down" in site.left.names)
    moments = {call: moment - cut for moment, call, _ in site.left.calls}
    assert moments["suspected"] == pytest.approx(ASK_AFTER + PONG_AFTER)
    assert moments["down"] == pytest.approx(15, abs=3)
    assert site.left.values("down") == ["nothing was heard from the peer for 15 s"]
    assert site.wire.gateway.closed


def test_a_path_that_comes_back_is_trusted_again() -> None:
    site = Site().connect()
    site.wire.cut()
    site.gateway.send_many([data(1)])
    site.clock.advance(4)
    # The first PING, for the round trip, was lost with the rest.
    assert site.left.values("suspected") == [pytest.approx(PONG_AFTER, abs=0.1)]
    site.wire.heal()
    site.clock.advance(1)
    assert site.left.names[-1] == "trusted"
    site.clock.advance(60)
    assert site.gateway.state == "up"
    assert site.right.messages == [data(1)]


def test_a_gateway_goes_by_what_its_transport_says_of_the_path() -> None:
    site = Site().connect()
    site.clock.advance(3)
    for link in (site.gateway, site.endpoint):
        link.transport_stalled(0.6)
        link.transport_answered()
    assert site.left.names[-2:] == ["suspected", "trusted"]
    assert site.left.values("suspected") == [0.6]
    assert "suspected" not in site.right.names
    site.clock.advance(30)
    assert site.left.names[-1] == "trusted"


def test_packets_of_the_transport_are_a_sign_of_life() -> None:
    """As in a long transfer over a slow path: only SACKs come, and PONG waits behind everything.

    An endpoint is content with them. A gateway, which could dial another link, has its doubts; but
    neither gives the link up.
    """
    site = Site().connect()
    site.clock.advance(1)
    site.wire.cut()
    for _ in range(300):
        for link, wire in ((site.gateway, site.wire.gateway), (site.endpoint, site.wire.endpoint)):
            link.send_many([data(1)])
            wire.heard_at = site.clock.time()
        site.clock.advance(0.1)
    assert site.gateway.state == site.endpoint.state == "up"
    assert "suspected" not in site.right.names
    assert site.left.values("suspected") == [pytest.approx(PONG_AFTER, abs=0.1)]


def test_answered_checks_of_the_path_take_the_place_of_pings() -> None:
    """But not of what was sent: a path that lets nothing else through is given up."""
    site = Site().connect()
    site.clock.advance(1)
    before = len(site.rtts)
    for _ in range(58):
        site.wire.gateway.seen_at = site.wire.endpoint.seen_at = site.clock.time()
        site.clock.advance(1)
    assert 1 <= len(site.rtts) - before <= 2
    site.wire.cut()
    site.gateway.send_many([data(1)])
    for _ in range(16):
        site.wire.gateway.seen_at = site.clock.time()
        site.clock.advance(1)
    assert site.gateway.state == "down"


def test_a_stopped_process_does_not_blame_its_peer() -> None:
    site = Site().connect()
    site.clock.advance(3)
    site.clock.stop(3600)
    site.clock.advance(30)
    assert site.gateway.state == site.endpoint.state == "up"
    assert "suspected" not in site.left.names + site.right.names


def test_a_link_that_does_not_come_up_says_what_it_waited_for() -> None:
    site = Site()
    site.gateway._begin()
    site.clock.advance(31)
    (reason,) = site.left.values("down")
    assert reason == "not connected within 30 s: the wire is not connected"
    site = Site()
    site.gateway._begin()
    site.wire.cut()
    site.wire.connect()
    site.clock.advance(31)
    assert site.left.values("down") == ["not connected within 30 s: the peer has sent no HELLO"]


# --- a peer that does what it must not ----------------------------------------------------------


def test_errors_are_logged_once_a_kind_and_counted_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site().connect()
    for _ in range(50):
        site.control(Resume().encode())
        site.control(hello().encode())
        site.control(message_header(99, 0))
    site.clock.advance(1)
    assert sorted(site.kinds) == ["second-hello"] * 50 + ["unexpected-resume"] * 50
    assert site.unknown == 50
    once = "further errors of this kind are only counted"
    assert caplog.messages == [
        f"link laptop: the peer sent RESUME, which was not agreed upon; {once}",
        f"link laptop: the peer sent HELLO twice; {once}",
    ]
    assert site.endpoint.state == "up"


def test_an_end_that_says_why_is_not_announced_by_a_second_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    site = Site()
    site.wire.connect()
    site.clock.until(lambda: site.wire.endpoint.state == "up")
    site.wire.endpoint.arrive("control", b"\x0a" + bytes(6) + b"\xc1")
    site.clock.advance(1)
    assert "no HELLO" in site.right.values("down")[0]
    assert site.kinds == ["malformed-hello"]
    assert caplog.messages == []


def test_an_odd_message_of_the_transport_s_is_an_error_like_others() -> None:
    site = Site().connect()
    site.wire.endpoint.arrive("datagram", data(1))
    assert site.kinds == ["wrong-channel"]
    assert site.endpoint.protocol.errors == {"wrong-channel": 1}


@pytest.mark.parametrize("what", ["messages", "resume"])
def test_a_bug_in_dealing_with_a_message_costs_this_link_only(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = Site(features=("resume",)).connect()
    site.right.raises = RecursionError("x" * 100_000)
    if what == "messages":
        site.gateway.send_many([data(1), data(2)])
    else:
        site.gateway.send_resume(Resume())
    site.clock.advance(1)
    (reason,) = site.right.values("down")
    assert reason.startswith("a message of the peer's hit a bug here (RecursionError: xxx")
    assert len(reason) < 300
    assert site.kinds == ["internal-error"]
    assert [record.levelno for record in caplog.records if record.exc_info] == [logging.ERROR]
    assert site.left.values("down") == ["the peer closed the connection"]


def test_a_bug_in_what_a_link_tells_costs_this_link_only() -> None:
    site = Site()
    site.left.raises, site.left.raises_in = ZeroDivisionError(), "up"
    site.wire.connect()
    site.clock.until(lambda: "down" in site.left.names)
    assert site.gateway.ended_by == "bug"
    site = Site().connect()
    site.left.raises, site.left.raises_in = ZeroDivisionError(), "drained"
    site.gateway.send_many([data(1)])
    site.clock.until(lambda: "down" in site.left.names)
    assert site.gateway.ended_by == "bug"


def test_the_end_is_told_also_if_the_transport_cannot_be_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site().connect()

    def fails(reason: str, *, linger: float) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(site.wire.gateway, "close", fails)
    with pytest.raises(ZeroDivisionError):
        site.gateway.transport_down("it is gone")
    assert site.left.values("down") == ["it is gone"]


def test_another_version_is_logged_as_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    site = Site()
    site.gateway.protocol.hello = hello(version=2, software="newer 9")
    site.wire.connect()
    site.clock.until(lambda: "down" in site.right.names)
    assert site.right.values("down") == ["the peer speaks protocol version 2, we speak 1"]
    assert caplog.messages == [
        "link laptop: the peer (newer 9) speaks protocol version 2, we speak 1; upgrade one side"
    ]


# --- the end ------------------------------------------------------------------------------------


def test_the_end_of_the_transport_is_the_end_of_the_link() -> None:
    site = Site().connect()
    site.wire.kill("the path is lost")
    assert site.left.values("down") == site.right.values("down") == ["the path is lost"]
    assert site.gateway.state == "down"
    site.clock.advance(100)
    finish(site.gateway.close("later"))


def test_a_link_that_was_never_started_can_be_closed() -> None:
    site = Site()
    finish(site.gateway.close("no need"))
    finish(site.gateway.close("again"))
    assert site.left.values("down") == ["no need"]


def test_what_was_said_last_arrives() -> None:
    site = Site(delay=0.1).connect()
    site.gateway.send_many([data(1)])
    site.gateway.goaway(0x12)
    finish(site.gateway.close("enough"))
    site.clock.advance(1)
    assert site.right.messages == [data(1)]
    assert site.right.values("goaway") == [0x12]


def test_the_timer_stops_with_the_link() -> None:
    site = Site().connect()
    site.wire.kill()
    site.clock.advance(60)
    assert site.clock.next_due is None
