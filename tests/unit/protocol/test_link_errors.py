"""What an operator reads of a link: of each error of its peer, and of a doubt that a PONG ends."""

import pytest

from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.keepalive import PONGS_PER_SECOND
from socks_tunnel.protocol.link import (
    EARLY_BYTES_MAX,
    EARLY_MESSAGES_MAX,
    LinkEvent,
    LinkFailed,
    LinkProtocol,
    LinkSuspected,
    LinkTrusted,
    PeerErred,
    RttMeasured,
    VersionRefused,
)
from socks_tunnel.protocol.messages import Data, Goaway, Hello, Ping, Pong, Resume, decode

T0 = 100.0
SESSION = bytes(range(16))
PING = Ping(bytes(8)).encode()


def hello(version: int = 1, session: bytes = SESSION) -> Hello:
    return Hello(version, "test", session, 262_144, 65_529)


def made(role: str, greeted: bool = False) -> LinkProtocol:
    link = (
        LinkProtocol("gateway", hello(), T0)
        if role == "gateway"
        else LinkProtocol("endpoint", hello(session=bytes(16)), T0)
    )
    link.channels_opened(T0)
    if greeted:
        link.receive_message(hello().encode(), T0)
        events(link)
    return link


def events(link: LinkProtocol) -> list[LinkEvent]:
    found = []
    while (event := link.next_event()) is not None:
        found.append(event)
    return found


@pytest.mark.parametrize(
    ("messages", "kind", "what"),
    [
        ([hello().encode()], "second-hello", "sent HELLO twice"),
        ([Goaway(0).encode()] * 2, "second-goaway", "sent GOAWAY twice"),
        (
            [Resume(()).encode()],
            "unexpected-resume",
            "sent RESUME, which was not agreed upon",
        ),
        (
            [Data(1, b"x").encode()],
            "wrong-channel",
            f"sent a message of type {Data(1, b'x').encode()[0]} on `control`",
        ),
        (
            [PING] * (PONGS_PER_SECOND + 1),
            "ping-flood",
            f"sent over {PONGS_PER_SECOND} PINGs a second",
        ),
    ],
)
def test_an_error_on_a_link_that_lives_on_says_all_of_it(
    messages: list[bytes], kind: str, what: str
) -> None:
    link = made("endpoint", greeted=True)
    for message in messages:
        link.receive_message(message, T0)
    told = [event for event in events(link) if isinstance(event, PeerErred)]
    assert told == [PeerErred(kind, what, True)]
    assert link.state == "established"


@pytest.mark.parametrize(
    ("role", "message", "kind"),
    [
        ("endpoint", PING, "before-hello"),
        ("endpoint", hello(version=9).encode(), "version"),
        ("gateway", hello(session=bytes(16)).encode(), "session"),
    ],
)
def test_an_error_that_ends_the_link_leaves_the_sentence_to_the_end(
    role: str, message: bytes, kind: str
) -> None:
    link = made(role)
    link.receive_message(message, T0)
    erred, *rest = events(link)
    assert erred == PeerErred(kind, "", True)
    assert isinstance(rest[-1], LinkFailed)
    assert all(isinstance(event, VersionRefused) for event in rest[:-1])


def test_what_is_no_message_at_all_before_hello_has_its_own_kind() -> None:
    link = made("endpoint")
    link.receive_message(b"", T0)
    erred, failed = events(link)
    assert erred == PeerErred("short-message", "", True)
    assert isinstance(failed, LinkFailed)


def test_as_many_early_messages_as_there_may_be_do_not_end_the_link() -> None:
    link = made("endpoint")
    early = [Data(1, b"").encode()] * EARLY_MESSAGES_MAX
    assert link.receive_flow_messages(early, T0) == []
    assert (link.state, events(link)) == ("connecting", [])
    link.receive_flow_messages(early[:1], T0)
    erred, failed = events(link)
    assert erred == PeerErred("before-hello", "", True)
    assert isinstance(failed, LinkFailed)


def test_as_many_early_messages_with_too_many_bytes_are_told_by_their_bytes() -> None:
    link = made("endpoint")
    size = EARLY_BYTES_MAX // EARLY_MESSAGES_MAX + 1
    link.receive_flow_messages([Data(1, bytes(size)).encode()] * EARLY_MESSAGES_MAX, T0)
    sentence = f"the peer sent over {EARLY_BYTES_MAX} bytes before HELLO"
    assert events(link)[-1] == LinkFailed(sentence)


def test_a_link_that_has_failed_greets_nobody() -> None:
    link = LinkProtocol("gateway", hello(), T0)
    link.fail()
    link.channels_opened(T0)
    assert link.messages_to_send() == []


def test_channels_open_once() -> None:
    link = LinkProtocol("gateway", hello(), T0)
    link.channels_opened(T0)
    link.channels_opened(T0)
    assert link.messages_to_send() == [hello().encode()]


def test_our_own_resume_without_the_feature_is_our_bug() -> None:
    link = made("endpoint", greeted=True)
    with pytest.raises(
        LocalProtocolError, match=r"^RESUME on a link on which it was not agreed upon$"
    ):
        link.resume(Resume(()))


def test_a_pong_ends_the_doubt_of_a_transport_that_does_not_answer_and_a_false_one_does_not() -> (
    None
):
    link = made("gateway", greeted=True)
    ping = decode(link.messages_to_send()[-1])
    assert isinstance(ping, Ping)
    link.stalled(0.5)
    link.receive_message(Pong(b"not ours").encode(), T0 + 0.5)
    assert events(link) == [LinkSuspected(0.5)]
    link.receive_message(Pong(ping.opaque).encode(), T0 + 1)
    link.receive_message(Pong(ping.opaque).encode(), T0 + 2)
    assert events(link) == [LinkTrusted(), RttMeasured(1.0)]
