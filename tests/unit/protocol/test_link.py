"""What a link says for itself, message by message, with time as a number."""

import struct
from typing import Any

import msgpack
import pytest

from socks_tunnel.protocol.bounded import CLIP
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.link import (
    CONNECT_TIMEOUT,
    EARLY_BYTES_MAX,
    EARLY_MESSAGES_MAX,
    GoawayReceived,
    LinkEstablished,
    LinkEvent,
    LinkFailed,
    LinkProtocol,
    LinkSuspected,
    LinkTrusted,
    NotConnected,
    PeerErred,
    ResumeReceived,
    RttMeasured,
    UnknownReceived,
    VersionRefused,
)
from socks_tunnel.protocol.messages import (
    Data,
    Goaway,
    Hello,
    MessageType,
    OpenConnection,
    Ping,
    Pong,
    Resume,
    UdpPacket,
    decode,
    message_header,
)

T0 = 100.0
SESSION = bytes(range(16))


def hello(**changes: Any) -> Hello:
    fields: dict[str, Any] = {
        "version": 1,
        "software": "test",
        "session": SESSION,
        "window": 262_144,
        "max_data": 65_529,
    }
    return Hello(**(fields | changes))


def events(link: LinkProtocol) -> list[LinkEvent]:
    found = []
    while (event := link.next_event()) is not None:
        found.append(event)
    return found


def gateway(**changes: Any) -> LinkProtocol:
    return LinkProtocol("gateway", hello(**changes), T0)


def endpoint(**changes: Any) -> LinkProtocol:
    return LinkProtocol("endpoint", hello(session=bytes(16), **changes), T0)


def established(role: str = "endpoint", **changes: Any) -> LinkProtocol:
    """A link that is up, with what came of that taken already."""
    link = gateway(**changes) if role == "gateway" else endpoint(**changes)
    link.channels_opened(T0)
    link.receive_message(hello(**changes).encode(), T0)
    assert link.state == "established"
    events(link)
    link.messages_to_send()
    return link


class Pair:
    """A gateway and an endpoint whose `control` arrives at once, in order."""

    def __init__(self, **changes: Any) -> None:
        self.now = T0
        self.left, self.right = gateway(**changes), endpoint(**changes)

    def exchange(self) -> tuple[list[LinkEvent], list[LinkEvent]]:
        """Carries messages until there are none; returns what both sides have to tell."""
        moved = True
        while moved:
            moved = False
            for sender, receiver in ((self.left, self.right), (self.right, self.left)):
                for message in sender.messages_to_send():
                    receiver.receive_message(message, self.now)
                    moved = True
        return events(self.left), events(self.right)

    def open(self) -> tuple[list[LinkEvent], list[LinkEvent]]:
        self.right.channels_opened(self.now)
        self.left.channels_opened(self.now)
        return self.exchange()


# --- HELLO --------------------------------------------------------------------------------------


def test_both_sides_greet_and_measure() -> None:
    pair = Pair(features=("udp",))
    at_left, at_right = pair.open()
    assert at_left == [LinkEstablished(hello(features=("udp",))), RttMeasured(0)]
    assert at_right == [LinkEstablished(hello(features=("udp",))), RttMeasured(0)]
    assert pair.left.state == pair.right.state == "established"
    assert pair.left.keepalive.rtt == pair.right.keepalive.rtt == 0
    assert not pair.left.errors
    assert not pair.right.errors


def test_the_gateway_speaks_first_and_the_endpoint_takes_its_session() -> None:
    link = endpoint()
    link.channels_opened(T0)
    assert link.messages_to_send() == []
    link.receive_message(hello(session=b"s" * 16).encode(), T0)
    first, second = link.messages_to_send()
    assert decode(first) == hello(session=b"s" * 16)
    assert isinstance(decode(second), Ping)


def test_hello_alone_is_not_enough_and_neither_are_channels_alone() -> None:
    link = endpoint()
    link.receive_message(hello().encode(), T0)
    assert link.state == "connecting"
    assert [decode(message) for message in link.messages_to_send()] == [hello()]
    assert events(link) == []
    link.channels_opened(T0)
    link.channels_opened(T0)
    assert events(link) == [LinkEstablished(hello())]
    assert len(link.messages_to_send()) == 1  # the PING


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        (Ping(bytes(8)).encode(), "no HELLO but has type 1"),
        (OpenConnection(1, "example.com", 80).encode(), "no HELLO but has type 14"),
        (message_header(99, 0), "no HELLO but has type 99"),
        (b"", "shorter than its header"),
        (b"\x0a", "shorter than its header"),
        (message_header(10, 0), "HELLO is malformed: it ends too early"),
        (message_header(10, 0) + msgpack.packb({"version": 1}), "'session' is absent"),
        (message_header(10, 0) + b"\xc1", "no HELLO: HELLO is malformed"),
    ],
)
@pytest.mark.parametrize("role", ["gateway", "endpoint"])
def test_the_first_message_must_be_hello(role: str, first: bytes, sentence: str) -> None:
    link = gateway() if role == "gateway" else endpoint()
    link.channels_opened(T0)
    link.receive_message(first, T0)
    error, failure = events(link)
    assert isinstance(error, PeerErred)
    assert isinstance(failure, LinkFailed)
    assert sentence in failure.reason
    assert link.state == "failed"
    assert link.next_timeout() is None


def test_another_version_is_refused_and_both_operators_can_read_why() -> None:
    pair = Pair()
    pair.left.hello = hello(version=2, software="newer 9\x1b[2J" + "x" * 400)
    at_left, at_right = pair.open()
    kinds = [type(event) for event in at_right]
    assert kinds == [PeerErred, VersionRefused, LinkFailed]
    refused, failure = at_right[1:]
    assert isinstance(refused, VersionRefused)
    assert refused.version == 2
    assert refused.software.startswith("newer 9")
    assert refused.software.isprintable()
    assert len(refused.software.encode()) <= CLIP
    assert failure == LinkFailed("the peer speaks protocol version 2, we speak 1", linger=True)
    assert isinstance(at_left[-1], LinkFailed)  # our HELLO is of another session than its own


def test_the_refusal_of_a_version_says_our_own() -> None:
    link = endpoint()
    link.channels_opened(T0)
    link.receive_message(hello(version=7).encode(), T0)
    assert [decode(message) for message in link.messages_to_send()] == [hello(session=bytes(16))]


def test_a_gateway_refuses_another_session() -> None:
    link = gateway()
    link.channels_opened(T0)
    link.receive_message(hello(session=bytes(16)).encode(), T0)
    assert events(link)[-1] == LinkFailed("the peer's HELLO names another session than ours")


def test_a_second_hello_changes_nothing() -> None:
    link = established()
    link.receive_message(hello(window=1).encode(), T0)
    assert link.remote_hello == hello()
    assert link.errors == {"second-hello": 1}


# --- what comes before HELLO --------------------------------------------------------------------


def test_flow_messages_that_overtake_hello_are_kept_in_order() -> None:
    link = endpoint()
    link.channels_opened(T0)
    early = [OpenConnection(n + 1, "example.com", 80).encode() for n in range(50)]
    assert link.receive_flow_messages(early[:20], T0) == []
    assert link.receive_flow_messages(early[20:], T0) == []
    assert link.take_early() == early
    assert link.take_early() == []


def test_on_an_established_link_the_list_is_handed_through() -> None:
    link = established()
    batch = [Data(1, b"x").encode()]
    assert link.receive_flow_messages(batch, T0) is batch


@pytest.mark.parametrize(
    ("count", "size", "sentence"),
    [
        (EARLY_MESSAGES_MAX + 1, 1, f"over {EARLY_MESSAGES_MAX} messages before HELLO"),
        (EARLY_BYTES_MAX // 65_536 + 1, 65_529, f"over {EARLY_BYTES_MAX} bytes before HELLO"),
    ],
)
def test_only_so_much_is_kept_before_hello(count: int, size: int, sentence: str) -> None:
    link = endpoint()
    message = Data(1, bytes(size)).encode()
    for _ in range(count - 1):
        link.receive_flow_messages([message], T0)
    assert link.state == "connecting"
    link.receive_flow_messages([message], T0)
    assert events(link)[-1] == LinkFailed(f"the peer sent {sentence}")
    assert link.take_early() == []
    assert link.receive_flow_messages([message], T0) == []


# --- messages -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (b"", "short-message"),
        (b"\x69", "short-message"),
        (message_header(MessageType.PING, 0) + bytes(7), "malformed-ping"),
        (message_header(MessageType.GOAWAY, 0), "malformed-goaway"),
        (message_header(MessageType.HELLO, 0), "malformed-hello"),
        (hello().encode(), "second-hello"),
        (Resume((), last=False).encode(), "unexpected-resume"),
        (Data(1, b"x").encode(), "wrong-channel"),
        (UdpPacket(1, b"x").encode(), "wrong-channel"),
    ],
)
def test_errors_are_counted_each_time_and_first_only_once(message: bytes, kind: str) -> None:
    link = established()
    for _ in range(3):
        link.receive_message(message, T0)
    told = events(link)
    assert [event.kind for event in told if isinstance(event, PeerErred)] == [kind] * 3
    assert [event.first for event in told if isinstance(event, PeerErred)] == [True, False, False]
    assert link.errors == {kind: 3}
    assert link.state == "established"


def test_a_text_of_the_peer_s_is_bounded_in_whatever_is_said_of_it() -> None:
    link = endpoint()
    link.channels_opened(T0)
    body = msgpack.packb({"version": 1, "session": "\N{SNOWMAN}" * 20_000})
    link.receive_message(message_header(10, 0) + body, T0)
    error, failure = events(link)
    assert isinstance(error, PeerErred)
    assert isinstance(failure, LinkFailed)
    assert error.what == ""  # the failure says it
    assert len(failure.reason.encode()) < 300
    link = established()
    link.receive_message(message_header(10, 0) + body, T0)
    (error,) = events(link)
    assert isinstance(error, PeerErred)
    assert 0 < len(error.what.encode()) < 300


def test_unknown_types_are_told_and_ignored() -> None:
    link = established()
    link.receive_message(message_header(99, 0) + b"whatever", T0)
    link.receive_message(message_header(0, 0), T0)
    assert events(link) == [UnknownReceived(), UnknownReceived()]
    assert not link.errors


def test_goaway_is_told_once() -> None:
    link = established()
    for reason in (0x12, 0x12, 0):
        link.receive_message(Goaway(reason).encode(), T0)
    told = events(link)
    assert [event for event in told if isinstance(event, GoawayReceived)] == [GoawayReceived(0x12)]
    assert link.errors == {"second-goaway": 2}


def test_goaway_is_said_on_an_established_link_only() -> None:
    link = gateway()
    link.goaway(0x12)
    assert link.messages_to_send() == []
    link = established("gateway")
    link.goaway(0x12)
    assert link.messages_to_send() == [Goaway(0x12).encode()]


def test_ping_is_echoed() -> None:
    link = established()
    link.receive_message(Ping(b"an echo.").encode(), T0)
    assert link.messages_to_send() == [Pong(b"an echo.").encode()]


def test_a_flood_of_pings_is_not_echoed() -> None:
    link = established()
    for _ in range(1000):
        link.receive_message(Ping(bytes(8)).encode(), T0)
    assert len(link.messages_to_send()) == 16
    assert link.errors == {"ping-flood": 984}
    assert link.state == "established"


def test_a_pong_of_nothing_is_no_round_trip() -> None:
    link = established()
    for opaque in (b"\xff" * 8, struct.pack("!d", float("nan"))):
        link.receive_message(Pong(opaque).encode(), T0)
    assert events(link) == []


# --- RESUME -------------------------------------------------------------------------------------


def test_resume_goes_up_and_down_if_both_have_the_feature() -> None:
    pair = Pair(features=("udp", "resume"))
    pair.open()
    assert pair.left.resumable
    assert pair.right.resumable
    pair.left.resume(Resume())
    _, at_right = pair.exchange()
    assert at_right == [ResumeReceived(Resume())]


@pytest.mark.parametrize(("ours", "theirs"), [((), ("resume",)), (("resume",), ()), ((), ())])
def test_resume_needs_the_feature_on_both_sides(
    ours: tuple[str, ...], theirs: tuple[str, ...]
) -> None:
    link = LinkProtocol("endpoint", hello(features=ours), T0)
    link.channels_opened(T0)
    link.receive_message(hello(features=theirs).encode(), T0)
    link.receive_message(Resume((), last=False).encode(), T0)
    assert link.errors == {"unexpected-resume": 1}
    assert not [event for event in events(link) if isinstance(event, ResumeReceived)]
    with pytest.raises(LocalProtocolError, match="not agreed"):
        link.resume(Resume())


def test_our_own_resume_waits_until_the_link_is_established() -> None:
    link = endpoint(features=("resume",))
    link.receive_message(hello(features=("resume",)).encode(), T0)
    with pytest.raises(LocalProtocolError):
        link.resume(Resume())


def test_a_resume_that_comes_too_late_is_no_bug() -> None:
    link = established(features=("resume",))
    link.fail()
    link.resume(Resume())
    assert link.messages_to_send() == []


# --- time ---------------------------------------------------------------------------------------


def test_a_link_that_is_not_established_in_time_has_failed() -> None:
    link = gateway()
    assert link.next_timeout() == T0 + CONNECT_TIMEOUT
    link.restart_connecting(T0 + 10)
    assert link.next_timeout() == T0 + 10 + CONNECT_TIMEOUT
    link.handle_timeout(T0 + CONNECT_TIMEOUT)
    assert events(link) == []
    link.handle_timeout(T0 + 10 + CONNECT_TIMEOUT)
    assert events(link) == [NotConnected(CONNECT_TIMEOUT)]
    assert link.state == "failed"
    link.handle_timeout(T0 + 1000)
    assert events(link) == []


def test_a_link_that_is_established_connects_no_more() -> None:
    link = established()
    due = link.next_timeout()
    link.restart_connecting(T0 + 1000)
    assert link.next_timeout() == due


def test_an_established_link_lives_while_its_peer_answers() -> None:
    pair = Pair()
    pair.open()
    for _ in range(100):
        due = pair.left.next_timeout(), pair.right.next_timeout()
        assert None not in due
        pair.now = min(moment for moment in due if moment is not None)
        pair.left.handle_timeout(pair.now)
        pair.right.handle_timeout(pair.now)
        for told in pair.exchange():
            assert {type(event) for event in told} <= {RttMeasured}
    assert pair.now > T0 + 400


def test_a_silent_peer_is_suspected_and_then_given_up() -> None:
    link = established()
    assert link.sent(T0 + 0.5) is False  # the first PING is still unanswered
    told: list[LinkEvent] = []
    moments = []
    while (due := link.next_timeout()) is not None:
        link.handle_timeout(due)
        new = events(link)
        told += new
        moments += [due - T0] * len(new)
    assert told == [LinkSuspected(2), LinkFailed("nothing was heard from the peer for 15 s")]
    assert moments == [2, 15]


def test_a_gateway_suspects_a_peer_whose_transport_does_not_answer() -> None:
    link = established("gateway")
    link.stalled(0.5)
    link.stalled(0.9)
    link.heard(T0 + 1)
    assert events(link) == [LinkSuspected(0.5)]
    link.answered(T0 + 1.1)
    link.answered(T0 + 1.2)
    assert events(link) == [LinkTrusted()]
    assert (link.next_timeout() or 0) > T0 + 1.2  # the PING that waits has a new time


def test_a_transport_that_does_not_answer_is_nothing_to_an_endpoint_nor_before_hello() -> None:
    for link in (established("endpoint"), gateway()):
        link.stalled(0.5)
        link.answered(T0 + 1)
        assert events(link) == []


def test_a_sign_of_the_transport_counts() -> None:
    link = established()
    link.next_timeout()
    link.handle_timeout(T0 + 2)
    assert events(link) == [LinkSuspected(2)]
    link.heard(T0 + 3)
    assert not link.keepalive.suspected
    assert events(link) == [LinkTrusted()]
    due = link.next_timeout()
    assert due is not None
    assert due > T0 + 3


def test_only_what_is_sent_on_an_established_link_waits_for_an_answer() -> None:
    link = gateway()
    assert link.sent(T0) is False
    link = established()
    link.keepalive.answered(link.keepalive.ping(T0), T0)
    assert link.sent(T0 + 1) is True
    assert link.sent(T0 + 1) is False
    link.fail()
    assert link.sent(T0 + 2) is False


# --- the end ------------------------------------------------------------------------------------


def test_a_failed_link_takes_and_says_nothing() -> None:
    link = established()
    link.receive_message(Ping(bytes(8)).encode(), T0)
    link.fail()
    assert link.messages_to_send() == []
    assert link.next_timeout() is None
    link.receive_message(b"", T0)
    link.channels_opened(T0)
    link.goaway(1)
    link.handle_timeout(T0 + 100)
    assert events(link) == []
    assert link.messages_to_send() == []
