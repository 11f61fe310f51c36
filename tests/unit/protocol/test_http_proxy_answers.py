"""What the HTTP proxy says itself, to the byte, and what a connection is worth at each moment."""

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.http_fields import HEAD_MAX
from socks_tunnel.protocol.http_proxy import (
    Event,
    ExchangeEnded,
    ForwardRequest,
    ProxyConnection,
    RequestRejected,
    ResponseBroken,
)
from socks_tunnel.protocol.socks5 import NEED_DATA, ConnectRequest, PasswordOffered

GET = b"GET http://a.b/x HTTP/1.1\r\nHost: a.b\r\n\r\n"
LOGIN = GET[:-2] + b"Proxy-Authorization: Basic am9lOnBhc3M=\r\n\r\n"
CONNECT = b"CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443\r\n\r\n"
POST = b"POST http://a.b/ HTTP/1.1\r\nHost: a.b\r\nContent-Length: 9\r\n\r\nx"
ORIGIN = HostPort("a.b", 80)
KEPT = ExchangeEnded(keep_client=True, keep_origin=True)
ORIGIN_LOST = ExchangeEnded(keep_client=True, keep_origin=False)
NO_CONTENT = b"HTTP/1.1 204 None\r\n\r\n"


def events_of(proxy: ProxyConnection) -> list[Event]:
    events: list[Event] = []
    while (event := proxy.next_event()) is not NEED_DATA:
        events.append(event)
    return events


def asked(raw: bytes, *, require_password: bool = False) -> ProxyConnection:
    proxy = ProxyConnection(require_password=require_password)
    proxy.receive_data(raw)
    events_of(proxy)
    proxy.data_to_origin()
    return proxy


def body_of(proxy: ProxyConnection) -> bytes:
    return proxy.data_to_send().partition(b"\r\n\r\n")[2]


# --- answers, to the byte -------------------------------------------------------------------------


def test_an_answer_of_our_own_is_plain_text_of_a_known_length() -> None:
    proxy = asked(GET)
    proxy.refuse(504, "a.b is late")
    assert proxy.data_to_send() == (
        b"HTTP/1.1 504 Gateway Timeout\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 26\r\n"
        b"\r\n"
        b"socks-tunnel: a.b is late\n"
    )


def test_the_last_answer_says_that_it_is_the_last() -> None:
    proxy = asked(GET)
    proxy.refuse(403, "no", close=True)
    assert proxy.data_to_send() == (
        b"HTTP/1.1 403 Forbidden\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 17\r\n"
        b"Connection: close\r\n"
        b"\r\n"
        b"socks-tunnel: no\n"
    )
    assert events_of(proxy) == [ExchangeEnded(keep_client=False, keep_origin=False)]


def test_a_login_that_is_wrong_is_answered_with_the_scheme_that_is_wanted() -> None:
    proxy = asked(LOGIN, require_password=True)
    proxy.accept_password(False)
    assert proxy.data_to_send() == (
        b"HTTP/1.1 407 Proxy Authentication Required\r\n"
        b"Content-Type: text/plain; charset=utf-8\r\n"
        b"Content-Length: 42\r\n"
        b'Proxy-Authenticate: Basic realm="socks-tunnel", charset="UTF-8"\r\n'
        b"\r\n"
        b"socks-tunnel: wrong user name or password\n"
    )


def test_a_status_without_a_phrase_of_ours_is_an_error() -> None:
    proxy = asked(GET)
    proxy.refuse(599, "no")
    assert proxy.data_to_send().startswith(b"HTTP/1.1 599 Error\r\n")


@pytest.mark.parametrize(
    ("raw", "answer"),
    [
        (b"GET\r\n\r\n", b"socks-tunnel: this is no HTTP request\n"),
        (
            GET[:-2] + b"Transfer-Encoding: gzip\r\n\r\n",
            b"socks-tunnel: chunked is the only transfer coding that is spoken\n",
        ),
        (
            GET[:-2] + b"X: " + b"x" * HEAD_MAX,
            b"socks-tunnel: the head of the request is too long\n",
        ),
    ],
)
def test_what_is_no_http_is_told_why(raw: bytes, answer: bytes) -> None:
    proxy = ProxyConnection()
    proxy.receive_data(raw)
    proxy.next_event()
    assert body_of(proxy) == answer
    with pytest.raises(RemoteProtocolError, match=r"^the client does not speak HTTP$"):
        proxy.next_event()


def test_a_request_that_is_rejected_is_told_why() -> None:
    proxy = ProxyConnection()
    proxy.receive_data(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert proxy.next_event() == RequestRejected("origin-form", 400)
    assert body_of(proxy) == b"socks-tunnel: this is a proxy and has no pages of its own\n"


def test_an_origin_that_does_not_answer_is_told_of() -> None:
    proxy = asked(GET)
    proxy.receive_from_origin(b"SSH-2.0-OpenSSH\r\n\r\n")
    assert events_of(proxy) == [ORIGIN_LOST]
    assert body_of(proxy) == b"socks-tunnel: the origin's answer is no HTTP\n"
    proxy.receive_data(GET)
    assert events_of(proxy) == [ForwardRequest(ORIGIN, "GET")]
    proxy.origin_ended(clean=True)
    assert body_of(proxy) == (b"socks-tunnel: the origin ended the connection without an answer\n")


def test_a_call_out_of_turn_says_what_was_not_asked() -> None:
    proxy = ProxyConnection()
    with pytest.raises(LocalProtocolError, match=r"^no password is waiting for an answer$"):
        proxy.accept_password(True)
    with pytest.raises(LocalProtocolError, match=r"^no CONNECT is waiting for an answer$"):
        proxy.tunnel_opened()
    with pytest.raises(LocalProtocolError, match=r"^no request is waiting for an answer$"):
        proxy.refuse(502, "no")


# --- bounds ---------------------------------------------------------------------------------------


def test_a_head_may_be_as_long_as_the_limit_and_not_a_byte_longer() -> None:
    proxy = ProxyConnection()
    start = GET[:-2] + b"X: "
    proxy.receive_data(start + b"x" * (HEAD_MAX - len(start)))
    assert events_of(proxy) == []
    proxy.receive_data(b"x")
    assert proxy.next_event() == ExchangeEnded(keep_client=False, keep_origin=False)
    assert proxy.data_to_send().startswith(b"HTTP/1.1 431 Request Header Fields Too Large\r\n")


# --- what a connection is worth -------------------------------------------------------------------


def test_a_new_connection_is_idle_and_has_no_request() -> None:
    proxy = ProxyConnection()
    seen = [(proxy.idle, proxy.request_whole)]
    for piece in (GET[:1], GET[1:]):
        proxy.receive_data(piece)
        events_of(proxy)
        seen.append((proxy.idle, proxy.request_whole))
    assert seen == [(True, False), (False, False), (False, True)]


def test_a_kept_origin_that_ends_between_two_requests_is_not_used_again() -> None:
    proxy = asked(GET)
    assert proxy.receive_from_origin(NO_CONTENT), "it was asked for"
    assert events_of(proxy) == [KEPT]
    assert not proxy.origin_ended(clean=True)
    proxy.receive_data(GET)
    assert events_of(proxy) == [ForwardRequest(ORIGIN, "GET")]
    proxy.receive_from_origin(NO_CONTENT)
    assert events_of(proxy) == [KEPT], "the new connection is a whole one"


def test_a_connect_has_no_origin_that_answers() -> None:
    proxy = asked(CONNECT)
    assert not proxy.receive_from_origin(NO_CONTENT)
    assert not proxy.origin_ended(clean=True)
    assert proxy.data_to_send() == b""
    proxy.tunnel_opened()
    assert proxy.data_to_send() == b"HTTP/1.1 200 Connection established\r\n\r\n"


def test_the_rest_of_a_body_is_dropped_once_the_response_is_broken() -> None:
    proxy = asked(POST)
    proxy.receive_from_origin(b"HTTP/1.1 200 K\r\nContent-Length: 9\r\n\r\npart")
    assert events_of(proxy) == []
    assert not proxy.origin_ended(clean=False)
    assert events_of(proxy) == [ResponseBroken()]
    proxy.receive_data(b"12345678")
    assert events_of(proxy) == []
    assert proxy.data_to_origin() == b""


def test_the_bytes_of_a_tunnel_are_no_longer_those_of_http() -> None:
    proxy = asked(CONNECT)
    proxy.tunnel_opened()
    # h11 would refuse bytes after an end; a tunnel's bytes are not its business.
    for data in (b"", b"GET", b""):
        proxy.receive_data(data)
        assert events_of(proxy) == []


def test_nothing_is_read_after_an_error() -> None:
    proxy = ProxyConnection()
    for data in (b"GET\r\n\r\n", b"", GET):
        proxy.receive_data(data)
        with pytest.raises(RemoteProtocolError):
            events_of(proxy)


def test_a_second_request_is_judged_anew() -> None:
    proxy = asked(CONNECT + b"early")
    assert proxy.trailing_data() == b"early"
    proxy = ProxyConnection(require_password=True)
    proxy.receive_data(LOGIN)
    assert events_of(proxy) == [PasswordOffered("joe", "pass")]
    proxy.accept_password(False)
    assert events_of(proxy) == [RequestRejected("authentication", 407), ORIGIN_LOST]
    assert proxy.idle
    proxy.receive_data(CONNECT[:-2] + LOGIN[len(GET) - 2 :])
    assert events_of(proxy) == [PasswordOffered("joe", "pass")]
    proxy.accept_password(True)
    assert events_of(proxy) == [ConnectRequest(HostPort("a.b", 443))]
