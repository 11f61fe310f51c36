"""How long servers are waited for, and what is remembered of them."""

import logging

import pytest

from socks_tunnel.peer.ice.servers import (
    ALIVE_PATIENCE,
    DEAD_AFTER,
    STRAGGLERS,
    Inquiry,
    ServerMemory,
)
from socks_tunnel.peer.ice.settings import IceServer
from socks_tunnel.protocol.ice_urls import parse_ice_url

SERVER = IceServer(parse_ice_url("stun:192.0.2.1"))


def test_a_dead_server_costs_half_a_second() -> None:
    assert Inquiry(SERVER, DEAD_AFTER, begun=100.0).until() == 100.5


def test_a_server_that_shows_life_has_longer() -> None:
    inquiry = Inquiry(SERVER, DEAD_AFTER, begun=100.0, alive=True)
    assert inquiry.until() == 100.0 + ALIVE_PATIENCE


def test_after_the_first_answer_only_stragglers_are_waited_for() -> None:
    inquiry = Inquiry(SERVER, DEAD_AFTER, begun=100.0, alive=True)
    inquiry.answered = 100.01
    assert inquiry.until() == pytest.approx(100.01 + STRAGGLERS)
    inquiry.answered = 100.4
    assert inquiry.until() == pytest.approx(101.2)


def test_a_server_that_has_ended_is_not_waited_for() -> None:
    assert Inquiry(SERVER, DEAD_AFTER, begun=100.0, alive=True, ended=True).until() == 100.0


def test_a_dead_server_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    memory = ServerMemory()
    caplog.set_level(logging.INFO)
    memory.failed("STUN server stun:a:3478", "no answer")
    memory.failed("STUN server stun:a:3478", "no answer")
    assert caplog.messages == ["STUN server stun:a:3478: no answer; links are made without it"]
    memory.answered("STUN server stun:a:3478", 0.25)
    memory.answered("STUN server stun:a:3478", 0.25)
    memory.failed("STUN server stun:a:3478", "no answer")
    assert caplog.messages[1:] == [
        "STUN server stun:a:3478 answers (after 0.25 s)",
        "STUN server stun:a:3478: no answer; links are made without it",
    ]


def test_a_slow_server_is_waited_for_next_time() -> None:
    memory = ServerMemory()
    assert memory.patience("a") == DEAD_AFTER
    memory.answered("a", 0.8)
    assert memory.patience("a") == pytest.approx(1.2)
    memory.answered("a", 60.0)
    assert memory.patience("a") == ALIVE_PATIENCE
    memory.answered("a", 0.1)
    assert memory.patience("a") == DEAD_AFTER


def test_the_memory_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    memory = ServerMemory()
    for number in range(ServerMemory.ENTRIES_MAX + 1):
        memory.failed(str(number), "no answer")
    caplog.clear()
    memory.failed("1", "no answer")
    assert not caplog.messages
    memory.failed("0", "no answer")  # forgotten
    assert len(caplog.messages) == 1


def test_an_answer_that_is_late_for_its_link_is_told_and_ends_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    memory = ServerMemory()
    memory.failed("STUN server stun:a:3478", "no answer within 5 s")
    caplog.set_level(logging.INFO)
    caplog.clear()
    memory.answered("STUN server stun:a:3478", 1.03, in_time=False)
    memory.answered("STUN server stun:a:3478", 0.02)
    assert caplog.messages == [
        "STUN server stun:a:3478 answers after 1.03 s, too late for this link"
    ]
