"""A gateway whose HELLO leaves behind the opening of the channels, and what may come early then."""

from typing import Any

from socks_tunnel.protocol.link import (
    EARLY_RESUMES_MAX,
    LinkEstablished,
    LinkFailed,
    LinkProtocol,
    PeerErred,
    ResumeReceived,
)
from socks_tunnel.protocol.messages import Ping, Resume, decode
from unit.protocol.test_link import T0, events, gateway, hello


def test_a_hello_that_the_transport_has_sent_is_not_sent_again() -> None:
    link = gateway()
    link.hello_sent()
    link.channels_opened(T0)
    assert link.messages_to_send() == []
    link.receive_message(hello().encode(), T0)
    assert events(link) == [LinkEstablished(hello())]
    assert [type(decode(message)) for message in link.messages_to_send()] == [Ping]


PARTS = (Resume(((7, 1, 2, 1),), last=False), Resume(((8, 3, 4, 1),), last=True))


def greeted(**changes: Any) -> LinkProtocol:
    """A gateway whose early HELLO was answered while a channel is not acknowledged yet."""
    link = gateway(features=("resume",), **changes)
    link.hello_sent()
    link.receive_message(hello(features=("resume",)).encode(), T0)
    return link


def test_a_resume_that_comes_before_all_channels_are_acknowledged_is_kept() -> None:
    link = greeted()
    for part in PARTS:
        link.receive_message(part.encode(), T0)
    assert events(link) == []
    assert not link.errors
    link.channels_opened(T0)
    assert events(link) == [
        LinkEstablished(hello(features=("resume",))),
        *map(ResumeReceived, PARTS),
    ]
    link.receive_message(PARTS[0].encode(), T0)
    assert events(link) == [ResumeReceived(PARTS[0])], "nothing is told twice"
    assert link._early_resumes == []


def test_only_so_many_early_resumes_are_kept() -> None:
    link = greeted()
    for _ in range(EARLY_RESUMES_MAX):
        link.receive_message(PARTS[0].encode(), T0)
    assert link.state == "connecting"
    assert events(link) == []
    link.receive_message(PARTS[1].encode(), T0)
    assert link.errors == {"unexpected-resume": 1}
    assert events(link) == [
        PeerErred("unexpected-resume", "", True),
        LinkFailed("the peer sent over 64 RESUMEs before all channels were open"),
    ]
    assert link._early_resumes == []
    link.channels_opened(T0)
    assert events(link) == []


def test_a_link_that_fails_keeps_no_early_resume() -> None:
    link = greeted()
    link.receive_message(PARTS[0].encode(), T0)
    link.fail()
    assert link._early_resumes == []
