"""HTTP clients that are refused, that take too long, and that have to log in."""

from __future__ import annotations

import base64

import pytest

from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import CloseConnection, Data
from socks_tunnel_workers.frontends.http import HEAD_SECONDS, KEEP_SECONDS
from socks_tunnel_workers.frontends.logins import Verdict
from unit.workers.frontends.test_http import ANSWER, CONNECT, GET, Site
from unit.workers.frontends.test_socks import Logins, with_users


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(monkeypatch)


# --- what is refused, and time --------------------------------------------------------------------


def test_a_web_page_gets_400_and_the_end(site: Site) -> None:
    sock = site.client(
        b"POST / HTTP/1.1\r\nHost: localhost:1080\r\nContent-Length: 5\r\n\r\n" + GET
    )
    assert sock.sent.startswith(b"HTTP/1.1 400 ")
    assert sock.ended
    assert site.rejected("origin-form") == 1
    assert site.sent() == []
    assert site.gateway.clients.handshakes == 0


def test_what_is_no_http(site: Site) -> None:
    sock = site.client(b"GURK\r\n\r\n")
    assert sock.sent.startswith(b"HTTP/1.1 400 ")
    assert sock.ended
    assert site.rejected("bad-request") == 1


def test_bad_chunks_under_way_reset_the_origin(site: Site) -> None:
    sock = site.client(
        b"POST http://10.0.0.1/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    conn_id, _ = site.opened()
    site.sent()
    site.says(b"-1\r\n")
    assert site.sent()[-1] == CloseConnection(conn_id, CloseReason.RESET)
    assert sock.sent.startswith(b"HTTP/1.1 400 ")


def test_a_head_has_its_time(site: Site) -> None:
    sock = site.client(b"GET http://10.0.0.1/ HTTP/1.1\r\n")
    site.gateway.loop.advance(HEAD_SECONDS + 0.1)
    assert sock.closed
    assert site.rejected("timeout") == 1


def test_a_kept_connection_has_its_time(site: Site) -> None:
    sock = site.client(GET)
    site.gateway.loop.advance(HEAD_SECONDS - 5)
    conn_id, _ = site.opened()
    site.gateway.loop.advance(1000)  # an answer may take its time
    site.answer(Data(conn_id, ANSWER))
    site.gateway.loop.advance(KEEP_SECONDS - 1)
    assert sock in site.gateway.loop.readers
    site.gateway.loop.advance(2)
    assert sock.closed
    assert site.rejected("timeout") == 0
    assert site.pairs.halves[0].closed, "the origin sees the end"


def test_closing_gives_everything_up(site: Site) -> None:
    site.client(GET)
    site.opened()
    site.gateway.clients.close()
    assert site.sock.closed
    assert site.pairs.all_closed
    assert site.gateway.clients.handshakes == 0


# --- passwords ------------------------------------------------------------------------------------


def login(raw: bytes) -> bytes:
    field = b"\r\nProxy-Authorization: Basic " + base64.b64encode(b"joe:right") + b"\r\n\r\n"
    return raw.replace(b"\r\n\r\n", field, 1)


def test_a_password_is_asked_for_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, with_users())
    logins = Logins(site.gateway)
    sock = site.client(CONNECT)
    assert sock.sent.startswith(b"HTTP/1.1 407 ")
    assert site.rejected("authentication") == 1
    site.says(login(CONNECT))
    (offer,) = logins.offered
    assert (offer.name, offer.password) == ("joe", "right")
    offer.tell(Verdict.WRONG)
    assert sock.sent.count(b"HTTP/1.1 407 ") == 2
    site.says(login(CONNECT))
    logins.offered[-1].tell(Verdict.BUSY)
    assert b"HTTP/1.1 503 " in bytes(sock.sent)
    assert site.rejected("login-busy") == 1
    site.says(login(CONNECT))
    logins.offered[-1].tell(Verdict.RIGHT)
    sock.takes(0)
    site.opened()
    assert b"HTTP/1.1 200 " in bytes(sock.sent)


def test_a_known_login_takes_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, with_users())
    Logins(site.gateway).at_once = Verdict.RIGHT
    site.client(login(GET))
    site.opened()


def test_a_client_that_leaves_takes_its_login_along(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, with_users())
    logins = Logins(site.gateway)
    sock = site.client(login(GET))
    sock.is_reset()
    assert logins.offered == []


def test_a_body_waits_for_the_verdict_in_the_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(monkeypatch, with_users())
    logins = Logins(site.gateway)
    sock = site.client(
        login(b"POST http://10.0.0.1/ HTTP/1.1\r\nHost: a\r\nContent-Length: 99999\r\n\r\n")
    )
    assert sock not in site.gateway.loop.readers
    logins.offered[0].tell(Verdict.RIGHT)
    assert sock in site.gateway.loop.readers
