"""What all flows of a worker have in common: what they refuse, their row, and their end."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, RemoteProtocolError
from socks_tunnel.protocol.messages import OpenConnection, SendEof, WindowUpdate
from socks_tunnel_workers.relay.flow import Flow, reason_name
from unit.workers.frontends.fakes import Gateway


class Bare(Flow):
    """A flow that adds nothing but its figures."""

    kind = "tcp"
    up, down, state = 5, 7, "open"


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


def bare(gateway: Gateway) -> Bare:
    return Bare(gateway.session(), 9, command="connect", client="127.0.0.1:5")


@pytest.mark.parametrize(
    ("reason", "name"),
    [
        (CloseReason.ORDERLY, "orderly"),
        (CloseReason.IDLE_TIMEOUT, "idle-timeout"),
        (0xEE, "0xee"),
    ],
)
def test_a_reason_has_a_name_even_if_it_is_unknown(reason: int, name: str) -> None:
    assert reason_name(reason) == name


def test_what_a_subclass_does_not_expect_is_an_error_of_the_peer(gateway: Gateway) -> None:
    flow = bare(gateway)
    handlers: list[tuple[str, Callable[[], None]]] = [
        ("DATA", lambda: flow.on_data(memoryview(b"x"))),
        ("WINDOW_UPDATE", lambda: flow.on_window(WindowUpdate(9, 0, 1))),
        ("UDP_PACKET", lambda: flow.on_datagram(memoryview(b"x"))),
        ("SendEof", lambda: flow.on_message(SendEof(9))),
        ("OpenConnection", lambda: flow.on_repeated(OpenConnection(9, "a", 1))),
    ]
    for name, handle in handlers:
        with pytest.raises(RemoteProtocolError, match=f"^{name} has no place in a conn") as caught:
            handle()
        assert (caught.value.kind, caught.value.conn_id) == ("unexpected-message", 9)
    assert flow.on_missing() is False, "nothing is asked for again"


def test_its_row_for_operators(gateway: Gateway) -> None:
    flow = bare(gateway)
    assert flow.as_row(gateway.loop.now + 1.25) == {
        "peer": "office",
        "conn_id": 9,
        "kind": "tcp",
        "command": "connect",
        "client": "127.0.0.1:5",
        "destination": "",
        "state": "open",
        "seconds": 1.25,
        "up": 5,
        "down": 7,
        "held": 0,
    }
    flow.destination = HostPort("::1", 443)
    assert flow.as_row(gateway.loop.now)["destination"] == "[::1]:443"
    assert not flow.udp


def test_it_leaves_once_with_one_line_in_the_audit(
    gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "socks_tunnel.audit")
    flow = bare(gateway)
    session = flow.session
    session.admit(flow)  # type: ignore[attr-defined]  # it is a whole session here
    assert gateway.counters.active["tcp"] == 1
    gateway.loop.advance(3)
    assert flow.end(CloseReason.RESET)
    assert not flow.end(CloseReason.ORDERLY)
    assert gateway.counters.active["tcp"] == 0
    (record,) = caplog.records
    fields = record.__dict__["fields"]
    assert (fields["reason"], fields["flow"], fields["seconds"]) == ("reset", 9, 3.0)
