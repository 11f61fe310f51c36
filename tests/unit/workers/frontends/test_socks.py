"""A client on the proxy's port, until its request is understood: bytes in, replies out."""

from __future__ import annotations

import socket
from typing import Any, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    Answer,
    CloseConnection,
    ConnectionOpened,
    OpenConnection,
    Resolved,
)
from socks_tunnel_workers.frontends.http import HttpSession
from socks_tunnel_workers.frontends.logins import Login, Verdict
from socks_tunnel_workers.frontends.socks import LOGIN_BYTES_MAX, SocksSession
from unit.workers.frontends.fakes import Gateway, Sock

GREETING = b"\x05\x01\x00"
CONNECT = b"\x05\x01\x00\x01\x0a\x00\x00\x01\x00\x50"
LOGIN = b"\x05\x01\x02\x01\x03joe\x05right"
BOUND = HostPort("192.0.2.9", 4000)


def client(gateway: Gateway, *pieces: bytes) -> Sock:
    sock = Sock(gateway.loop)
    SocksSession(gateway.clients, cast("socket.socket", sock), ("127.0.0.1", 5))
    for piece in pieces:
        sock.arrives(piece)
    return sock


def with_users(**tables: dict[str, object]) -> Gateway:
    """A gateway whose listener wants a password; whether it is right says the test."""
    gateway = Gateway(**tables)
    gateway.settings.passwords = cast("Any", object())
    return gateway


class Logins:
    """Takes the place of the real ones: verdicts come from the test."""

    def __init__(self, gateway: Gateway) -> None:
        self.offered: list[Login] = []
        self.at_once: Verdict | None = None
        gateway.clients.logins = cast("Any", self)

    def check(self, who: Any, name: str, password: str, answer: Any) -> Login:
        login = Login(cast("Any", self), who, name, password, answer)
        self.offered.append(login)
        if self.at_once is not None:
            login.tell(self.at_once)
        return login

    def forget(self, login: Login) -> None:
        self.offered.remove(login)


def test_a_connect_from_the_first_byte_to_the_flow() -> None:
    gateway = Gateway()
    session = gateway.session()
    sock = client(gateway, GREETING)
    assert gateway.clients.handshakes == 1
    sock.arrives(CONNECT)
    assert sock.sent == b"\x05\x00"
    (opening,) = gateway.sent(session)
    assert isinstance(opening, OpenConnection)
    assert gateway.clients.handshakes == 0, "it counts as a flow"

    gateway.answer(session, ConnectionOpened(opening.conn_id, BOUND))

    assert sock.sent == b"\x05\x00" + b"\x05\x00\x00\x01\xc0\x00\x02\x09\x0f\xa0"
    assert gateway.clients.handshakes == 0
    assert gateway.counted("requests_total", "connect", "succeeded") == 1
    gateway.loop.advance(100)
    assert not sock.closed


@pytest.mark.parametrize(
    ("request_bytes", "reply"),
    [(b"\x04\x01\x00\x50\x0a\x00\x00\x01joe\x00", b"\x00\x5a\x0f\xa0\xc0\x00\x02\x09"),
     (b"\x04\x01\x00\x50\x00\x00\x00\x01\x00a.b\x00", b"\x00\x5a\x0f\xa0\xc0\x00\x02\x09")],
)  # fmt: skip
def test_socks4_on_the_same_port(request_bytes: bytes, reply: bytes) -> None:
    gateway = Gateway()
    session = gateway.session()
    sock = client(gateway, request_bytes[:1], request_bytes[1:])
    (opening,) = gateway.sent(session)
    assert isinstance(opening, OpenConnection)
    gateway.answer(session, ConnectionOpened(opening.conn_id, BOUND))
    assert sock.sent == reply


def test_http_on_the_same_port() -> None:
    gateway = Gateway()
    sock = client(gateway, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert sock.sent.startswith(b"HTTP/1.1 400 ")
    assert gateway.counted("socks_rejected_total", "origin-form") == 1


@pytest.mark.parametrize(
    ("protocols", "first"),
    [
        (("socks5", "socks4", "http"), 0x00),
        (("socks5", "socks4", "http"), 0x16),  # a TLS ClientHello
        (("socks5", "socks4", "http"), 0xC3),  # a letter, but none of ASCII
        (("socks4", "http"), 5),
        (("socks5", "http"), 4),
        (("socks5", "socks4"), ord("G")),
    ],
)
def test_what_is_not_spoken_here(protocols: tuple[str, ...], first: int) -> None:
    gateway = Gateway(socks={"protocols": list(protocols)})
    sock = client(gateway, bytes((first, 1, 0)))
    assert sock.sent == b""
    assert sock.ended
    assert gateway.counted("socks_rejected_total", "unknown-protocol") == 1
    assert gateway.clients.handshakes == 0


@pytest.mark.parametrize(
    ("request_bytes", "code", "command", "reply"),
    [
        (b"\x05\x09\x00\x01" + bytes(6), 7, "unknown", "command_not_supported"),
        (b"\x05\x01\x00\x09", 8, "unknown", "address_type_not_supported"),
        (b"\x05\x01\x00\x03\x01 \x00\x50", 1, "connect", "general_failure"),
        (b"\x05\x02\x00\x03\x00\x00\x50", 1, "bind", "general_failure"),
        (b"\x05\xf1\x00\x03\x01a\x00\x00", 8, "resolve", "address_type_not_supported"),
        (b"\x04\x01\x00\x50", 1, "unknown", "general_failure"),
    ],
)
def test_a_request_that_is_none_is_answered_and_counted(
    request_bytes: bytes, code: int, command: str, reply: str
) -> None:
    gateway = Gateway()
    sock = client(gateway, GREETING + request_bytes)
    assert sock.sent == b"\x05\x00\x05" + bytes((code,)) + b"\x00\x01" + bytes(6)
    assert gateway.counted("requests_total", command, reply) == 1
    assert sock.ended
    assert gateway.clients.handshakes == 0


def test_a_refusal_is_a_reply() -> None:
    gateway = Gateway()
    session = gateway.session()
    sock = client(gateway, GREETING + CONNECT)
    (opening,) = gateway.sent(session)
    gateway.answer(session, CloseConnection(opening.conn_id, CloseReason.CONNECTION_REFUSED))  # type: ignore[union-attr]  # it has one
    assert sock.sent[2:] == b"\x05\x05\x00\x01" + bytes(6)
    assert sock.ended
    assert gateway.counted("requests_total", "connect", "connection_refused") == 1


@pytest.mark.parametrize(
    ("hosts", "reply"),
    [
        (["10.0.0.1"], b"\x05\x00\x00\x01\x0a\x00\x00\x01\x00\x00"),
        (["2001:db8::1", "10.0.0.1"], b"\x05\x00\x00\x01\x0a\x00\x00\x01\x00\x00"),
        (["::1"], b"\x05\x00\x00\x04" + bytes(15) + b"\x01\x00\x00"),
        ([], b"\x05\x04\x00\x01" + bytes(6)),
    ],
)
def test_a_name_is_resolved(hosts: list[str], reply: bytes) -> None:
    gateway = Gateway()
    session = gateway.session()
    sock = client(gateway, GREETING + b"\x05\xf0\x00\x03\x03a.b\x00\x00")
    (question,) = gateway.sent(session)
    answers = tuple(Answer(1, host) for host in hosts)
    gateway.answer(session, Resolved(question.conn_id, 0, answers))  # type: ignore[union-attr]  # it has one
    assert sock.sent[2:] == reply
    assert sock.ended


def test_the_name_of_an_address() -> None:
    gateway = Gateway()
    session = gateway.session()
    sock = client(gateway, GREETING + b"\x05\xf1\x00\x01\x0a\x00\x00\x01\x00\x00")
    (question,) = gateway.sent(session)
    gateway.answer(session, Resolved(question.conn_id, 0, (Answer(1, "a.b"),)))  # type: ignore[union-attr]  # it has one
    assert sock.sent[2:] == b"\x05\x00\x00\x03\x03a.b\x00\x00"


# --- clients that leave or do not come to the point -----------------------------------------------


@pytest.mark.parametrize("pieces", [[], [b"\x05"], [GREETING, CONNECT[:5]]])
def test_who_leaves_before_its_request_is_counted(pieces: list[bytes]) -> None:
    gateway = Gateway()
    sock = client(gateway, *pieces, b"")
    assert sock.closed
    assert gateway.counted("socks_rejected_total", "incomplete") == 1
    assert gateway.clients.handshakes == 0


def test_a_handshake_has_its_time() -> None:
    gateway = Gateway()
    sock = client(gateway, GREETING)
    gateway.loop.advance(29.9)
    assert sock in gateway.loop.readers
    gateway.loop.advance(0.2)
    assert sock.closed
    assert gateway.counted("socks_rejected_total", "timeout") == 1


def test_a_reset_closes() -> None:
    gateway = Gateway()
    sock = client(gateway, GREETING)
    sock.is_reset()
    assert sock.closed
    assert gateway.clients.handshakes == 0


def test_a_client_whose_socket_takes_no_reply_is_reset() -> None:
    gateway = Gateway()
    session = gateway.session()
    sock = client(gateway, GREETING, CONNECT)
    (opening,) = gateway.sent(session)
    sock.room = 3
    gateway.answer(session, ConnectionOpened(opening.conn_id, BOUND))  # type: ignore[union-attr]  # it has one
    assert sock.closed
    assert sock.reset
    assert gateway.clients.handshakes == 0
    assert [type(message) for message in gateway.sent(session)] == [CloseConnection]


def test_closing_a_client_gives_its_request_up() -> None:
    gateway = Gateway()
    session = gateway.session()
    sock = client(gateway, GREETING, CONNECT)
    gateway.clients.close()
    assert sock.closed
    assert [type(message) for message in gateway.sent(session)] == [OpenConnection, CloseConnection]


# --- passwords ------------------------------------------------------------------------------------


def test_a_login_that_is_right_goes_on() -> None:
    gateway = with_users()
    logins = Logins(gateway)
    session = gateway.session()
    sock = client(gateway, LOGIN)
    (login,) = logins.offered
    assert (login.name, login.password, login.client.account) == ("joe", "right", "127.0.0.1")
    sock.arrives(CONNECT)  # ahead of the verdict
    assert gateway.sent(session) == []

    login.tell(Verdict.RIGHT)

    assert sock.sent == b"\x05\x02\x01\x00"
    assert len(gateway.sent(session)) == 1


@pytest.mark.parametrize(
    ("verdict", "kinds"),
    [(Verdict.WRONG, ["authentication"]), (Verdict.BUSY, ["authentication", "login-busy"])],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_login_that_is_refused(verdict: Verdict, kinds: list[str], at_once: bool) -> None:
    gateway = with_users()
    logins = Logins(gateway)
    logins.at_once = verdict if at_once else None
    sock = client(gateway, LOGIN)
    if not at_once:
        logins.offered[0].tell(verdict)
    assert sock.sent == b"\x05\x02\x01\x01"
    assert sock.ended
    for kind in kinds:
        assert gateway.counted("socks_rejected_total", kind) == 1


def test_a_known_login_costs_no_turn() -> None:
    gateway = with_users()
    Logins(gateway).at_once = Verdict.RIGHT
    session = gateway.session()
    client(gateway, LOGIN + CONNECT)
    assert len(gateway.sent(session)) == 1


def test_a_client_that_leaves_takes_its_login_along() -> None:
    gateway = with_users()
    logins = Logins(gateway)
    sock = client(gateway, LOGIN, b"")
    assert sock.closed
    assert logins.offered == []


def test_a_whole_handshake_with_its_end_behind_it_is_answered() -> None:
    gateway = with_users()
    logins = Logins(gateway)
    session = gateway.session()
    sock = client(gateway, LOGIN + CONNECT + b"early", b"")
    logins.offered[0].tell(Verdict.RIGHT)
    sock.turn()
    opening, _ = gateway.sent(session)
    gateway.answer(session, ConnectionOpened(opening.conn_id, BOUND))  # type: ignore[union-attr]  # it has one
    assert sock.sent[:7] == b"\x05\x02\x01\x00\x05\x00\x00"


def test_what_a_client_sends_ahead_of_the_verdict_is_bounded() -> None:
    gateway = with_users()
    Logins(gateway)
    sock = client(gateway, LOGIN)
    sock.arrives(bytes(LOGIN_BYTES_MAX + 8192))
    assert sock not in gateway.loop.readers
    assert sum(len(piece) for piece in sock.incoming if isinstance(piece, bytes)) > 0


def test_socks4_carries_no_password() -> None:
    gateway = with_users()
    sock = client(gateway, b"\x04\x01\x00\x50\x0a\x00\x00\x01joe\x00")
    assert sock.sent == b"\x00\x5b" + bytes(6)
    assert gateway.counted("socks_rejected_total", "authentication") == 1


def test_the_http_front_end_is_loaded_by_its_name() -> None:
    assert HttpSession.__module__ == "socks_tunnel_workers.frontends.http"
