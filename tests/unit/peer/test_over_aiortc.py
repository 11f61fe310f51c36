"""The life of a transport over aiortc, and how it guards the calls to its owner."""

import logging
from typing import Any, cast

import pytest

from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.over_aiortc import AiortcTransport
from unit.peer.fast.test_transport import Owner, turn


def make(owner: Any) -> AiortcTransport:
    transport = AiortcTransport(
        "endpoint", IceSettings(), name="laptop", lanes=2, make=cast("Any", None)
    )
    transport.attach(owner)
    return transport


async def test_it_ends_once_and_says_why() -> None:
    owner = Owner()
    transport = make(owner)
    states = [transport.state]
    assert transport.path is None
    assert transport.stage == "no answer came"
    transport.close("enough")
    states.append(transport.state)
    transport.close("again")
    transport.connection_lost("and again")
    await transport.wait_closed()
    assert owner.calls == [("down", "enough")]
    assert states == ["new", "down"]


async def test_it_sends_nothing_before_the_channels_are_acknowledged() -> None:
    assert not make(Owner()).send_early(b"hello")


async def test_nothing_is_reported_after_the_end() -> None:
    owner = Owner()
    transport = make(owner)
    transport._left(10)
    transport.close("enough")
    await turn()
    assert owner.calls == [("down", "enough")]


async def test_a_bug_of_the_owner_ends_this_transport_only(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Buggy(Owner):
        def transport_up(self) -> None:
            raise ZeroDivisionError("scripted")

    owner = Buggy()
    transport = make(owner)
    with caplog.at_level(logging.ERROR):
        transport.connection_up()
    assert owner.calls == [
        ("down", "dealing with the peer hit a bug here (ZeroDivisionError: scripted)")
    ]
    assert "a bug in dealing with its peer" in caplog.text


async def test_errors_of_the_peer_are_handed_on() -> None:
    owner = Owner()
    make(owner).connection_error("channel", "did something odd")
    assert owner.calls == [("error", "channel", "did something odd")]
