"""The last bytes of a stream: when they are acknowledged after the peer's end of file (ADR 0046)."""

from typing import Any, cast

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import CloseConnection, Data, SendEof, WindowUpdate
from socks_tunnel_workers.relay.tcp import LAST_BYTES, TAIL_SECONDS, TcpRelay
from unit.workers.frontends.fakes import Gateway, Sock
from unit.workers.relay.test_tcp import WINDOW, Site


def test_the_last_bytes_are_acknowledged_with_our_own_end() -> None:
    site = Site().open()
    site.answer(Data(site.conn_id, b"tail"), SendEof(site.conn_id))
    assert site.was_shut()
    assert site.sent() == [], "the end of the client is still to come"
    site.sock.arrives(b"")
    update, *rest = site.sent()
    assert isinstance(update, WindowUpdate)
    assert update.consumed == 4
    # Nothing of ours is unacknowledged, so that all of it leaves in one turn.
    assert rest == [SendEof(site.conn_id), CloseConnection(site.conn_id, CloseReason.ORDERLY)]


def test_the_last_bytes_are_acknowledged_in_a_while_if_our_end_does_not_come() -> None:
    site = Site().open()
    site.answer(Data(site.conn_id, b"tail"), SendEof(site.conn_id))
    site.sock.arrives(b"an upload that goes on")
    assert site.data() == b"an upload that goes on"
    site.advance(0.0)
    (update,) = site.sent()
    assert isinstance(update, WindowUpdate)
    assert update.consumed == 4
    site.advance(TAIL_SECONDS + 0.1)
    assert site.sent() == []


def test_many_last_bytes_are_acknowledged_at_once() -> None:
    site = Site().open()
    site.answer(Data(site.conn_id, bytes(LAST_BYTES + 1)), SendEof(site.conn_id))
    (update,) = site.sent()
    assert isinstance(update, WindowUpdate)
    assert update.consumed == LAST_BYTES + 1


def test_last_bytes_that_the_socket_takes_late_are_acknowledged_when_it_has_them() -> None:
    site = Site().open()
    site.sock.arrives(b"")
    assert site.sent() == [SendEof(site.conn_id)]
    site.sock.room = 1
    site.answer(Data(site.conn_id, b"abc"), SendEof(site.conn_id))
    assert site.sent() == []
    site.sock.takes(10)
    update, *rest = site.sent()
    assert isinstance(update, WindowUpdate)
    assert update.consumed == 3
    assert rest == [CloseConnection(site.conn_id, CloseReason.ORDERLY)]


def test_an_endpoint_acknowledges_with_its_end_whatever_the_gateway_still_keeps() -> None:
    gateway = Gateway()
    session = gateway.session(window=WINDOW)
    sock = Sock(gateway.loop)
    flow = TcpRelay(
        session, 9, command="connect", client="laptop", destination=HostPort("10.0.0.1", 80)
    )
    session.admit(flow)
    flow.attach(cast("Any", sock))
    gateway.answer(session, Data(9, b"question"))
    assert gateway.sent(session) == []
    sock.arrives(b"answer")
    sock.arrives(b"")
    answer, update, end = gateway.sent(session)
    assert isinstance(answer, Data)
    assert isinstance(update, WindowUpdate)
    assert update.consumed == 8
    assert end == SendEof(9)
    gateway.answer(session, SendEof(9))
    assert gateway.sent(session) == [], "the gateway knows it, and its CLOSE is to come"
