"""A host that sleeps, while the other one goes on: whom a link blames, with time as a number."""

import pytest

from socks_tunnel.protocol.keepalive import PING_INTERVAL, SEEN_INTERVALS
from socks_tunnel.protocol.link import LinkEvent, LinkFailed, LinkProtocol, LinkSuspected
from socks_tunnel.protocol.messages import Hello, Ping, Pong, decode

T0 = 100.0


def made(role: str) -> LinkProtocol:
    """Returns one end of a link that is still to be established."""
    hello = Hello(
        version=1,
        software="test",
        session=bytes(16),
        window=262_144,
        max_data=65_529,
        features=("resume",),
    )
    return LinkProtocol("gateway" if role == "gateway" else "endpoint", hello, T0)


def events(link: LinkProtocol) -> list[LinkEvent]:
    """Returns what has happened, once."""
    found = []
    while (event := link.next_event()) is not None:
        found.append(event)
    return found


@pytest.mark.parametrize("minutes", [10, 600])
def test_a_gateway_that_slept_blames_nobody_and_finds_out_soon(minutes: int) -> None:
    """All of it is stopped for minutes, while the endpoint goes on and gives the link up."""
    gateway, endpoint = made("gateway"), made("endpoint")
    for link in (endpoint, gateway):
        link.channels_opened(T0)
    for sender, receiver in ((gateway, endpoint), (endpoint, gateway)):
        for message in sender.messages_to_send():
            receiver.receive_message(message, T0)
    events(gateway)
    events(endpoint)
    assert gateway.next_timeout() is not None  # its owner has set the timer
    # The endpoint's PINGs wait in the gateway's socket; its own time goes on.
    waiting: list[bytes] = []
    ends: list[LinkEvent] = []
    while not ends:
        due = endpoint.next_timeout()
        assert due is not None
        endpoint.handle_timeout(due)
        waiting += endpoint.messages_to_send()
        ends = [event for event in events(endpoint) if isinstance(event, LinkFailed)]
    assert ends[-1] == LinkFailed("nothing was heard from the peer for 15 s")

    woke = now = T0 + 60 * minutes
    gateway.handle_timeout(now)
    assert gateway.state == "established"
    for message in waiting:
        gateway.receive_message(message, now)
    gateway.messages_to_send()  # nobody takes them any more
    assert events(gateway) == []
    gateway.sent(now)
    told: list[LinkEvent] = []
    while not told:
        due = gateway.next_timeout()
        assert due is not None
        now = max(now, due)
        gateway.handle_timeout(now)
        gateway.messages_to_send()
        told = events(gateway)
    assert isinstance(told[0], LinkSuspected)
    assert now - woke < 2.1


def test_a_link_that_is_asked_sends_a_ping_at_once() -> None:
    gateway = made("gateway")
    gateway.ask(T0)
    assert gateway.messages_to_send() == [], "it is not established yet"
    gateway.channels_opened(T0)
    (hello,) = gateway.messages_to_send()
    gateway.receive_message(hello, T0)
    (first,) = gateway.messages_to_send()
    gateway.receive_message(Pong(first[-8:]).encode(), T0 + 0.1)
    events(gateway)
    gateway.ask(T0 + 1)
    (asked,) = gateway.messages_to_send()
    assert isinstance(decode(asked), Ping)
    due = gateway.next_timeout()
    assert due is not None
    assert due < T0 + 3
    gateway.handle_timeout(due)
    assert [type(event) for event in events(gateway)] == [LinkSuspected]


def test_a_path_that_was_checked_needs_no_ping_for_a_while() -> None:
    gateway, endpoint = made("gateway"), made("endpoint")
    for link in (endpoint, gateway):
        link.channels_opened(T0)
    for _ in range(3):  # HELLOs, PINGs, PONGs
        for sender, receiver in ((gateway, endpoint), (endpoint, gateway)):
            for message in sender.messages_to_send():
                receiver.receive_message(message, T0)
    assert endpoint.next_timeout() == T0 + PING_INTERVAL
    endpoint.seen(T0 + 4)
    assert endpoint.next_timeout() == T0 + 4 + SEEN_INTERVALS * PING_INTERVAL
