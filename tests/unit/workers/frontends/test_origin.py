"""The way to an origin: a socket pair, one end of which is a flow's. More of it is in test_http.py."""

from __future__ import annotations

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import CloseConnection, ConnectionOpened, Data, SendEof
from socks_tunnel_workers.frontends.identity import Client
from socks_tunnel_workers.frontends.origin import Origin, status_for
from unit.workers.frontends.fakes import Gateway
from unit.workers.frontends.test_http import Half, Pairs

BOUND = HostPort("192.0.2.9", 4000)
TARGET = HostPort("10.0.0.1", 80)


class Requester:
    """The client's side."""

    who = Client("127.0.0.1:5", "127.0.0.1")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gateway = Gateway()
        self.session = self.gateway.session()
        self.pairs = Pairs(self.gateway, monkeypatch)
        self.told: list[object] = []
        self.origin = Origin(self.gateway.clients, self, TARGET)
        self.origin.opening.start()
        (opening,) = self.gateway.sent(self.session)
        self.conn_id: int = opening.conn_id  # type: ignore[union-attr]  # it has one

    def answer(self, *messages: object) -> None:
        self.gateway.answer(self.session, *messages)  # type: ignore[arg-type]  # messages they are
        self.pairs.run()

    def origin_opened(self, origin: Origin) -> None:
        self.told.append("opened")
        origin.read(wanted=True)

    def origin_failed(self, origin: Origin, reason: int, sentence: str) -> None:
        self.told.append((reason, status_for(origin.opening, reason)))

    def from_origin(self, data: bytes) -> None:
        self.told.append(data)

    def origin_ended(self, origin: Origin, *, clean: bool) -> None:
        self.told.append(clean)

    def transmit(self) -> None:
        self.told.append("room")

    def close(self) -> None:
        self.told.append("closed")


def test_bytes_pass_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Requester(monkeypatch)
    asked.answer(ConnectionOpened(asked.conn_id, BOUND))
    asked.origin.write(b"question")
    asked.pairs.run()
    assert asked.gateway.sent(asked.session) == [Data(asked.conn_id, b"question")]
    asked.answer(Data(asked.conn_id, b"answer"))
    assert asked.told == ["opened", b"answer"]


@pytest.mark.parametrize("clean", [True, False])
def test_whether_an_end_is_clean_the_flow_knows(
    monkeypatch: pytest.MonkeyPatch, clean: bool
) -> None:
    asked = Requester(monkeypatch)
    asked.answer(ConnectionOpened(asked.conn_id, BOUND))
    end = SendEof(asked.conn_id) if clean else CloseConnection(asked.conn_id, CloseReason.RESET)
    asked.answer(end)
    assert asked.told == ["opened", clean]


def test_what_the_flow_does_not_take_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Requester(monkeypatch)
    asked.origin.write(bytes(Half.limit + 100_000))
    blocked = [asked.origin.blocked]
    asked.pairs.run()
    asked.answer(ConnectionOpened(asked.conn_id, BOUND))
    asked.pairs.run()
    blocked.append(asked.origin.blocked)
    assert blocked == [True, False]
    assert "room" in asked.told


def test_a_refusal_closes_the_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Requester(monkeypatch)
    asked.answer(CloseConnection(asked.conn_id, CloseReason.NOT_ALLOWED))
    assert asked.told == [(2, 403)]
    assert asked.pairs.all_closed


@pytest.mark.parametrize(("abort", "last"), [(True, CloseConnection), (False, SendEof)])
def test_how_it_is_closed(monkeypatch: pytest.MonkeyPatch, abort: bool, last: type) -> None:
    asked = Requester(monkeypatch)
    asked.answer(ConnectionOpened(asked.conn_id, BOUND))
    asked.origin.close(abort=abort)
    asked.pairs.run()
    assert isinstance(asked.gateway.sent(asked.session)[-1], last)
