"""The HTTP proxy without a socket: what a client says, what the origin gets, and the way back.

This file is long because each way in which an exchange can end is a test of its own.
"""

import base64

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.http_fields import HEAD_MAX
from socks_tunnel.protocol.http_proxy import (
    Event,
    ExchangeEnded,
    ForwardRequest,
    ProxyConnection,
    RequestRejected,
    ResponseBroken,
    status_of,
)
from socks_tunnel.protocol.socks5 import NEED_DATA, ConnectRequest, PasswordOffered

GET = b"GET http://a.b/x HTTP/1.1\r\nHost: wrong\r\n\r\n"
ORIGIN = HostPort("a.b", 80)
CONNECT = b"CONNECT a.b:443 HTTP/1.1\r\nHost: a.b:443\r\n\r\n"
KEPT = ExchangeEnded(keep_client=True, keep_origin=True)
ENDED = ExchangeEnded(keep_client=False, keep_origin=False)
CUT = ExchangeEnded(keep_client=False, keep_origin=False, cut=True)


def events_of(proxy: ProxyConnection) -> list[Event]:
    events: list[Event] = []
    while (event := proxy.next_event()) is not NEED_DATA:
        events.append(event)
    return events


def asked(raw: bytes, *, require_password: bool = False) -> tuple[ProxyConnection, list[Event]]:
    proxy = ProxyConnection(require_password=require_password)
    proxy.receive_data(raw)
    return proxy, events_of(proxy)


def answered(proxy: ProxyConnection, raw: bytes) -> list[Event]:
    proxy.receive_from_origin(raw)
    return events_of(proxy)


def head_of(raw: bytes) -> tuple[bytes, dict[bytes, bytes], bytes]:
    """The first line, the fields by lower-case name, and the body."""
    head, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines)
    return first, {name.lower(): value for name, value in fields.items()}, body


# --- CONNECT --------------------------------------------------------------------------------------


@pytest.mark.parametrize("early", [b"", b"\x16\x03\x01 hello"])
def test_connect(early: bytes) -> None:
    proxy, events = asked(CONNECT + early)

    assert events == [ConnectRequest(HostPort("a.b", 443))]
    assert proxy.trailing_data() == early
    assert proxy.data_to_send() == b""
    proxy.tunnel_opened()
    assert proxy.data_to_send() == b"HTTP/1.1 200 Connection established\r\n\r\n"
    assert events_of(proxy) == []
    with pytest.raises(LocalProtocolError):
        proxy.tunnel_opened()


def test_a_connect_that_fails_leaves_the_connection_to_the_next_request() -> None:
    proxy, _ = asked(CONNECT)
    assert proxy.trailing_data() == b""

    proxy.refuse(502, "connection refused by a.b:443")

    first, fields, body = head_of(proxy.data_to_send())
    assert first == b"HTTP/1.1 502 Bad Gateway"
    assert b"connection" not in fields
    assert body == b"socks-tunnel: connection refused by a.b:443\n"
    assert int(fields[b"content-length"]) == len(body)
    assert events_of(proxy) == [ExchangeEnded(keep_client=True, keep_origin=False)]
    proxy.receive_data(CONNECT)
    assert events_of(proxy) == [ConnectRequest(HostPort("a.b", 443))]


def test_a_connect_that_fails_after_early_data_ends_the_connection() -> None:
    proxy, _ = asked(CONNECT + b"hello")
    proxy.trailing_data()

    proxy.refuse(403, "no")

    assert head_of(proxy.data_to_send())[1][b"connection"] == b"close"
    assert events_of(proxy) == [ENDED]


# --- absolute form --------------------------------------------------------------------------------


def test_a_request_is_passed_on_and_its_answer_comes_back() -> None:
    proxy, events = asked(GET)

    assert events == [ForwardRequest(ORIGIN, "GET")]
    first, fields, body = head_of(proxy.data_to_origin())
    assert first == b"GET /x HTTP/1.1"
    assert fields == {b"host": b"a.b", b"via": b"1.1 socks-tunnel"}
    assert body == b""
    assert answered(proxy, b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\nX-A: b\r\n\r\nok") == [KEPT]
    first, fields, body = head_of(proxy.data_to_send())
    assert first == b"HTTP/1.1 200 Fine"
    assert fields == {b"content-length": b"2", b"x-a": b"b", b"via": b"1.1 socks-tunnel"}
    assert body == b"ok"


@pytest.mark.parametrize("size", [1, 7])
def test_byte_by_byte(size: int) -> None:
    raw = (
        b"POST http://a.b/ HTTP/1.1\r\nHost: a.b\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    answer = (
        b"HTTP/1.1 201 Made\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 2\r\n\r\n"
    )
    proxy = ProxyConnection()
    events: list[Event] = []
    to_origin = to_client = b""
    for start in range(0, len(raw), size):
        proxy.receive_data(raw[start : start + size])
        events += events_of(proxy)
        to_origin += proxy.data_to_origin()
    for start in range(0, len(answer), size):
        events += answered(proxy, answer[start : start + size])
        to_client += proxy.data_to_send()
    assert events == [ForwardRequest(ORIGIN, "POST"), KEPT]
    _, fields, body = head_of(to_origin)
    assert fields[b"transfer-encoding"] == b"chunked"
    pieces = body.split(b"\r\n")
    assert b"".join(pieces[1:-4:2]) == b"abcdefg"
    assert to_origin.endswith(b"0\r\nX-Sum: 1\r\n\r\n")
    assert to_client.endswith(b"0\r\nX-T: 2\r\n\r\n")


def test_keep_alive_with_and_without_the_same_origin() -> None:
    proxy, _ = asked(GET)
    proxy.data_to_origin()
    answered(proxy, b"HTTP/1.1 204 None\r\n\r\n")
    assert proxy.idle

    proxy.receive_data(GET)
    assert events_of(proxy) == [ForwardRequest(ORIGIN, "GET", reused=True)]
    answered(proxy, b"HTTP/1.1 204 None\r\n\r\n")
    proxy.receive_data(GET.replace(b"a.b", b"c.d"))
    assert events_of(proxy) == [ForwardRequest(HostPort("c.d", 80), "GET")]


def test_pipelined_requests_are_taken_one_after_the_other() -> None:
    proxy, events = asked(GET * 2)

    assert events == [ForwardRequest(ORIGIN, "GET")]
    assert not proxy.idle
    events = answered(proxy, b"HTTP/1.1 204 None\r\n\r\n")
    assert events == [KEPT, ForwardRequest(ORIGIN, "GET", reused=True)]


def test_an_http_1_0_client_gets_a_body_without_chunks_and_the_end() -> None:
    proxy, _ = asked(b"GET http://a.b/ HTTP/1.0\r\n\r\n")

    assert head_of(proxy.data_to_origin())[0] == b"GET / HTTP/1.1"
    events = answered(
        proxy, b"HTTP/1.1 100 Go\r\n\r\nHTTP/1.1 200 K\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"2\r\nok\r\n0\r\nX-T: 1\r\n\r\n",
    )  # fmt: skip
    assert events == [ENDED]
    first, fields, body = head_of(proxy.data_to_send())
    assert first == b"HTTP/1.1 200 K"
    assert fields == {b"connection": b"close", b"via": b"1.1 socks-tunnel"}
    assert body == b"ok"


def test_a_body_that_ends_with_the_connection_becomes_chunks() -> None:
    proxy, _ = asked(GET)

    assert answered(proxy, b"HTTP/1.0 200 K\r\n\r\nall") == []
    assert not proxy.origin_ended(clean=True)
    assert events_of(proxy) == [ExchangeEnded(keep_client=True, keep_origin=False)]
    sent = proxy.data_to_send()
    assert b"chunked" in sent
    assert sent.endswith(b"3\r\nall\r\n0\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "clean"),
    [
        (b"HTTP/1.0 200 K\r\n\r\nhalf", False),
        (b"HTTP/1.1 200 K\r\nContent-Length: 9\r\n\r\nhalf", True),
        (b"HTTP/1.1 200 K\r\nContent-Length: 9\r\n\r\nhalf", False),
        (b"HTTP/1.1 200 K\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", True),
    ],
)
def test_half_an_answer_is_no_clean_end(answer: bytes, clean: bool) -> None:
    proxy, _ = asked(GET)
    answered(proxy, answer)

    assert not proxy.origin_ended(clean=clean)
    assert events_of(proxy) == [ResponseBroken()]


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 101 Go\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n"]
)  # fmt: skip
def test_an_answer_that_is_none(answer: bytes) -> None:
    proxy, _ = asked(GET)

    assert answered(proxy, answer) == [ExchangeEnded(keep_client=True, keep_origin=False)]
    assert head_of(proxy.data_to_send())[0] == b"HTTP/1.1 502 Bad Gateway"


@pytest.mark.parametrize("clean", [True, False])
def test_no_answer_at_all(clean: bool) -> None:
    proxy, _ = asked(GET)

    assert not proxy.origin_ended(clean=clean)
    assert events_of(proxy) == [ExchangeEnded(keep_client=True, keep_origin=False)]
    assert head_of(proxy.data_to_send())[0] == b"HTTP/1.1 502 Bad Gateway"


def second(raw: bytes) -> ProxyConnection:
    """A second request on the origin's connection of the first."""
    proxy, _ = asked(GET)
    proxy.data_to_origin()
    answered(proxy, b"HTTP/1.1 204 None\r\n\r\n")
    proxy.data_to_send()
    proxy.receive_data(raw)
    (event,) = events_of(proxy)
    assert isinstance(event, ForwardRequest)
    assert event.reused
    return proxy


def test_a_kept_connection_that_ended_costs_a_safe_request_nothing() -> None:
    proxy = second(GET)
    before = proxy.data_to_origin()

    assert proxy.origin_ended(clean=True)
    assert proxy.data_to_origin() == before
    assert not proxy.origin_ended(clean=True), "once"
    assert head_of(proxy.data_to_send())[0] == b"HTTP/1.1 502 Bad Gateway"


@pytest.mark.parametrize(
    "raw",
    [
        b"POST http://a.b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        b"GET http://a.b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx",
    ],
)
def test_what_may_not_be_done_twice_is_not(raw: bytes) -> None:
    assert not second(raw).origin_ended(clean=True)


def test_what_follows_an_answer_is_none_to_a_later_request() -> None:
    """RFC 9112 section 9.2: the client MUST NOT take it for one."""
    proxy, _ = asked(GET)
    first = b"HTTP/1.1 200 Fine\r\nContent-Length: 2\r\n\r\nok"
    unasked = b"HTTP/1.1 200 Evil\r\nContent-Length: 1\r\n\r\nX"
    assert answered(proxy, first + unasked) == [ExchangeEnded(keep_client=True, keep_origin=False)]
    assert proxy.data_to_send().endswith(b"ok")
    proxy.receive_data(GET)
    assert events_of(proxy) == [ForwardRequest(ORIGIN, "GET")]
    assert proxy.data_to_send() == b""


def test_what_nobody_asked_for_ends_the_connection_that_it_came_on() -> None:
    proxy, _ = asked(GET)
    assert answered(proxy, b"HTTP/1.1 204 None\r\n\r\n") == [KEPT]
    proxy.data_to_send()
    assert not proxy.receive_from_origin(b"HTTP/1.1 408 Too late\r\n\r\n")
    proxy.receive_data(GET)
    assert events_of(proxy) == [ForwardRequest(ORIGIN, "GET")]
    assert proxy.data_to_send() == b""


def test_expect_100_continue() -> None:
    proxy, _ = asked(
        b"PUT http://a.b/ HTTP/1.1\r\nHost: a.b\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    )
    assert head_of(proxy.data_to_origin())[1][b"expect"] == b"100-continue"
    answered(proxy, b"HTTP/1.1 100 Continue\r\n\r\n")
    assert proxy.data_to_send().startswith(b"HTTP/1.1 100 Continue\r\n")
    proxy.receive_data(b"ok")
    assert events_of(proxy) == []
    assert proxy.data_to_origin() == b"ok"
    assert answered(proxy, b"HTTP/1.1 204 None\r\n\r\n") == [KEPT]


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_an_origin_that_keeps_no_connection_is_not_cut(version: bytes) -> None:
    proxy, _ = asked(GET)
    answer = version + b" 200 K\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok"
    assert answered(proxy, answer) == [ExchangeEnded(keep_client=True, keep_origin=False)]


def test_an_answer_before_the_body_is_over_ends_both_connections() -> None:
    proxy, _ = asked(b"POST http://a.b/ HTTP/1.1\r\nHost: a.b\r\nContent-Length: 9\r\n\r\nx")
    proxy.data_to_origin()

    assert answered(proxy, b"HTTP/1.1 413 Big\r\nContent-Length: 0\r\n\r\n") == [CUT]


def test_head_has_the_fields_of_a_body_and_none() -> None:
    proxy, _ = asked(GET.replace(b"GET", b"HEAD"))
    assert answered(proxy, b"HTTP/1.1 200 K\r\nContent-Length: 77\r\n\r\n") == [KEPT]
    _, fields, body = head_of(proxy.data_to_send())
    assert (fields[b"content-length"], body) == (b"77", b"")


def test_no_http_after_head_is_answered_with_a_body() -> None:
    proxy, _ = asked(GET.replace(b"GET", b"HEAD"))
    answered(proxy, b"HTTP/1.1 204 None\r\n\r\n")
    proxy.data_to_send()
    proxy.receive_data(b"\n\n")
    assert proxy.next_event() == ENDED
    assert head_of(proxy.data_to_send())[2].startswith(b"socks-tunnel: ")


def test_a_refusal_of_head_has_no_body() -> None:
    proxy, _ = asked(GET.replace(b"GET", b"HEAD"))
    proxy.refuse(504, "late")
    assert head_of(proxy.data_to_send())[2] == b""
    assert events_of(proxy) == [ExchangeEnded(keep_client=True, keep_origin=False)]


def test_a_refusal_while_the_body_comes_ends_the_connection() -> None:
    proxy, _ = asked(b"POST http://a.b/ HTTP/1.1\r\nHost: a.b\r\nContent-Length: 9\r\n\r\nx")
    assert not proxy.request_whole

    proxy.refuse(403, "no")

    assert head_of(proxy.data_to_send())[1][b"connection"] == b"close"
    assert events_of(proxy) == [ENDED]
    with pytest.raises(LocalProtocolError):
        proxy.refuse(403, "no")


def test_what_the_origin_says_after_a_refusal_is_dropped() -> None:
    proxy, _ = asked(GET)
    proxy.refuse(504, "late")
    proxy.data_to_send()
    assert answered(proxy, b"HTTP/1.1 200 K\r\nContent-Length: 2\r\n\r\nok") == [
        ExchangeEnded(keep_client=True, keep_origin=False)
    ]
    assert proxy.data_to_send() == b""


def test_only_a_connect_has_early_data() -> None:
    proxy, _ = asked(GET + GET)
    assert proxy.trailing_data() == b""
    assert answered(proxy, b"HTTP/1.1 204 None\r\n\r\n")[1] == ForwardRequest(
        ORIGIN, "GET", reused=True
    ), "the second request was not taken away"


def test_a_request_whose_way_ends_here_is_answered() -> None:
    proxy, events = asked(b"OPTIONS http://a.b HTTP/1.1\r\nHost: a.b\r\nMax-Forwards: 0\r\n\r\n")
    assert events == [
        RequestRejected("bad-request", 501),
        ExchangeEnded(keep_client=True, keep_origin=False),
    ]
    assert head_of(proxy.data_to_send())[0] == b"HTTP/1.1 501 Not Implemented"
    assert proxy.data_to_origin() == b""


def test_an_origin_that_changes_the_protocol_is_no_origin() -> None:
    proxy, _ = asked(GET.replace(b"Host", b"Connection: upgrade\r\nUpgrade: x\r\nHost"))
    assert b"pgrade" not in proxy.data_to_origin()
    answered(proxy, b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
    assert head_of(proxy.data_to_send())[0] == b"HTTP/1.1 502 Bad Gateway"


def test_a_client_may_end_its_side_after_its_request() -> None:
    proxy, _ = asked(b"GET http://a.b/ HTTP/1.1\r\nHost: a\r\n\r\n")
    proxy.receive_data(b"")
    assert events_of(proxy) == []
    assert proxy.request_whole
    assert answered(proxy, b"HTTP/1.1 200 K\r\nContent-Length: 2\r\n\r\nok") == [ENDED]
    assert proxy.data_to_send().endswith(b"ok")


# --- what is refused here -------------------------------------------------------------------------


@pytest.mark.parametrize("target", [b"/", b"/socks.pac", b"*"])
def test_a_web_page_cannot_use_it(target: bytes) -> None:
    proxy, events = asked(b"POST " + target + b" HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n" + GET)  # fmt: skip

    assert events == [RequestRejected("origin-form", 400), ENDED]
    first, fields, _ = head_of(proxy.data_to_send())
    assert first == b"HTTP/1.1 400 Bad Request"
    assert fields[b"connection"] == b"close"
    assert proxy.data_to_origin() == b""


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET\r\n\r\n", 400),
        (b"G@T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET http://a.b/ HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET http://a.b/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET http://a.b/ HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET http://a.b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n", 400),
        (b"GET http://a.b/ HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET http://a.b/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET http://a.b/ HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (HEAD_MAX + 1), 431),
    ],
)
def test_what_is_no_http(raw: bytes, status: int) -> None:
    proxy = ProxyConnection()
    proxy.receive_data(raw)

    assert proxy.next_event() == ENDED
    with pytest.raises(RemoteProtocolError) as caught:
        proxy.next_event()
    assert caught.value.kind == "bad-request"
    with pytest.raises(RemoteProtocolError) as again:
        proxy.next_event()
    assert again.value is caught.value
    first, fields, _ = head_of(proxy.data_to_send())
    assert first.startswith(b"HTTP/1.1 %d " % status)
    assert fields[b"connection"] == b"close"


@pytest.mark.parametrize(
    "field",
    [b"Content-Length: 4\r\nTransfer-Encoding: chunked", b"Transfer-Encoding: chunked\r\nContent-Length: 4"],
)  # fmt: skip
def test_two_framings_are_no_request_of_ours(field: bytes) -> None:
    proxy, events = asked(
        b"POST http://a.b/ HTTP/1.1\r\nHost: a\r\n" + field + b"\r\n\r\n0\r\n\r\n" + GET
    )
    assert events == [RequestRejected("bad-request", 400), ENDED]
    assert proxy.data_to_origin() == b""


def test_a_chunk_that_is_none_ends_the_exchange() -> None:
    proxy, _ = asked(b"POST http://a.b/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    proxy.receive_data(b"-1\r\n")
    assert proxy.next_event() == CUT
    with pytest.raises(RemoteProtocolError):
        proxy.next_event()
    assert head_of(proxy.data_to_send())[0] == b"HTTP/1.1 400 Bad Request"


def test_a_chunk_that_is_none_has_no_answer_if_there_is_one_already() -> None:
    proxy, _ = asked(b"POST http://a.b/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
    answered(proxy, b"HTTP/1.1 200 K\r\nContent-Length: 9\r\n\r\npart")
    assert proxy.data_to_send().endswith(b"part")
    proxy.receive_data(b"-1\r\n")
    with pytest.raises(RemoteProtocolError):
        proxy.next_event()
    assert proxy.data_to_send() == b""


# --- passwords ------------------------------------------------------------------------------------


def login(raw: bytes, text: bytes) -> bytes:
    field = b"\r\nProxy-Authorization: Basic " + base64.b64encode(text) + b"\r\n\r\n"
    return raw.replace(b"\r\n\r\n", field, 1)


@pytest.mark.parametrize("raw", [GET, CONNECT])
def test_a_password_is_asked_for_on_the_same_connection(raw: bytes) -> None:
    proxy, events = asked(raw, require_password=True)

    kept = ExchangeEnded(keep_client=True, keep_origin=False)
    assert events == [RequestRejected("authentication", 407), kept]
    first, fields, _ = head_of(proxy.data_to_send())
    assert first == b"HTTP/1.1 407 Proxy Authentication Required"
    assert fields[b"proxy-authenticate"] == b'Basic realm="socks-tunnel", charset="UTF-8"'

    proxy.receive_data(login(raw, b"joe:wrong"))
    assert events_of(proxy) == [PasswordOffered("joe", "wrong")]
    proxy.accept_password(False)
    assert events_of(proxy) == [RequestRejected("authentication", 407), kept]

    proxy.receive_data(login(raw, b"joe:right"))
    assert events_of(proxy) == [PasswordOffered("joe", "right")]
    proxy.accept_password(True)
    assert len(events_of(proxy)) == 1
    assert b"roxy-" not in proxy.data_to_origin()
    with pytest.raises(LocalProtocolError):
        proxy.accept_password(True)


def test_a_web_page_is_not_asked_for_a_password() -> None:
    _, events = asked(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", require_password=True)
    assert events == [RequestRejected("origin-form", 400), ENDED]


def test_a_login_that_cannot_be_checked_is_refused() -> None:
    proxy, _ = asked(login(GET, b"joe:x"), require_password=True)
    proxy.refuse(503, "too many logins")
    assert head_of(proxy.data_to_send())[0] == b"HTTP/1.1 503 Service Unavailable"


def test_a_body_waits_for_the_verdict() -> None:
    raw = b"POST http://a.b/ HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n"
    proxy, _ = asked(login(raw, b"joe:x") + b"body", require_password=True)
    assert proxy.data_to_origin() == b""
    proxy.accept_password(True)
    events_of(proxy)
    assert proxy.data_to_origin().endswith(b"\r\n\r\nbody")


# --- status codes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "status"),
    [(1, 502), (2, 403), (3, 502), (4, 502), (5, 502), (6, 504), (0x10, 502), (0x11, 504),
     (0x12, 503), (0x13, 503), (0x14, 503), (0x17, 503), (0x7F, 502)],
)  # fmt: skip
def test_the_status_says_what_happened(reason: int, status: int) -> None:
    assert status_of(reason) == status
    assert status_of(CloseReason.NOT_ALLOWED) == 403
