"""What a proxy reads in a request, and which fields it passes on."""

import base64

import h11
import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.http_fields import (
    CREDENTIAL_MAX,
    RejectionError,
    check_framing,
    client_response,
    credentials_of,
    origin_request,
    parse_target,
    passed_on,
)
from socks_tunnel.protocol.socks5 import PasswordOffered

Fields = list[tuple[str, str]]


def request(
    target: str, method: str = "GET", fields: Fields | None = None, version: str = "1.1"
) -> h11.Request:
    return h11.Request(
        method=method,
        target=target,
        headers=[("Host", "h"), *(fields or [])],
        http_version=version,
    )


@pytest.mark.parametrize(
    ("target", "destination", "authority", "path"),
    [
        ("http://example.com/", ("example.com", 80), "example.com", "/"),
        ("HTTP://Example.COM/A", ("example.com", 80), "Example.COM", "/A"),
        ("http://example.com:8080/a?b", ("example.com", 8080), "example.com:8080", "/a?b"),
        ("http://example.com", ("example.com", 80), "example.com", "/"),
        ("http://example.com?q=/", ("example.com", 80), "example.com", "/?q=/"),
        ("http://example.com:/", ("example.com", 80), "example.com:", "/"),
        ("http://10.1.2.3/", ("10.1.2.3", 80), "10.1.2.3", "/"),
        ("http://[2001:db8::1]/", ("2001:db8::1", 80), "[2001:db8::1]", "/"),
        ("http://[2001:db8::1]:81/", ("2001:db8::1", 81), "[2001:db8::1]:81", "/"),
        ("http://[2001:db8::1]:/", ("2001:db8::1", 80), "[2001:db8::1]:", "/"),
        ("http://X.example/", ("x.example", 80), "X.example", "/"),
    ],
)
def test_absolute_form(
    target: str, destination: tuple[str, int], authority: str, path: str
) -> None:
    asked = request(target)
    parsed = parse_target(asked)
    sent = origin_request(asked, parsed)

    assert parsed.destination == HostPort(*destination)
    assert sent.target == path.encode()
    assert [v for k, v in sent.headers if k == b"host"] == [authority.encode()]


@pytest.mark.parametrize(
    ("target", "destination"),
    [("a.b:443", ("a.b", 443)), ("[::1]:22", ("::1", 22)), ("10.0.0.1:1", ("10.0.0.1", 1))],
)
def test_connect(target: str, destination: tuple[str, int]) -> None:
    parsed = parse_target(request(target, "CONNECT"))

    assert (parsed.destination, parsed.path) == (HostPort(*destination), None)


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        ("GET", "/", "origin-form"),
        ("GET", "/x?u=http://example.com/", "origin-form"),
        ("OPTIONS", "*", "origin-form"),
        ("GET", "example.com:80", "origin-form"),
        ("GET", "https://example.com/", "bad-request"),
        ("GET", "ftp://example.com/", "bad-request"),
        ("GET", "http://", "bad-request"),
        ("GET", "http:///path", "bad-request"),
        ("GET", "http://user@example.com/", "bad-request"),
        ("GET", "http://example.com:99999/", "bad-request"),
        ("GET", "http://example.com:0/", "bad-request"),
        ("GET", "http://::1/", "bad-request"),
        ("GET", "http://a..b/", "bad-request"),
        ("GET", "http://example.com/#top", "bad-request"),
        ("CONNECT", "/", "bad-request"),
        ("CONNECT", "example.com", "bad-request"),
        ("CONNECT", "example.com:0", "bad-request"),
        ("CONNECT", "http://example.com:80/", "bad-request"),
    ],
)
def test_what_is_no_destination(method: str, target: str, kind: str) -> None:
    with pytest.raises(RejectionError) as caught:
        parse_target(request(target, method))
    assert (caught.value.kind, caught.value.status, caught.value.close) == (kind, 400, True)


@pytest.mark.parametrize(
    ("fields", "version", "method"),
    [
        ([("Transfer-Encoding", "chunked"), ("Content-Length", "5")], "1.1", "POST"),
        ([("Transfer-Encoding", "chunked")], "1.0", "POST"),
        ([("Transfer-Encoding", "chunked")], "1.1", "CONNECT"),
        ([("Content-Length", "5")], "1.1", "CONNECT"),
        ([], "2.0", "GET"),
    ],
)
def test_a_body_whose_length_is_in_doubt(fields: Fields, version: str, method: str) -> None:
    with pytest.raises(RejectionError) as caught:
        check_framing(request("a:80", method, fields, version))
    assert caught.value.close


@pytest.mark.parametrize(
    ("fields", "framed"),
    [
        ([], False),
        ([("Content-Length", "0")], False),
        ([("Content-Length", "1")], True),
        ([("Transfer-Encoding", "chunked")], True),
    ],
)
def test_whether_a_body_follows(fields: Fields, framed: bool) -> None:
    assert check_framing(request("http://a/", "POST", fields)) is framed


def basic(text: bytes) -> str:
    return "Basic " + base64.b64encode(text).decode()


@pytest.mark.parametrize(
    ("value", "name", "password"),
    [
        (basic(b"joe:secret"), "joe", "secret"),
        (basic(b"joe:a:b").replace("Basic", "basic"), "joe", "a:b"),
        (basic("zo\u00eb:\u00fc".encode()), "zo\u00eb", "\u00fc"),
        (basic(b":"), "", ""),
        (basic(b"joe:secret").replace(" ", "  "), "joe", "secret"),  # RFC 9110 11.4: 1*SP
    ],
)
def test_credentials(value: str, name: str, password: str) -> None:
    asked = request("http://a/", fields=[("Proxy-Authorization", value)])
    assert credentials_of(asked) == PasswordOffered(name, password)


@pytest.mark.parametrize(
    "values",
    [
        [],
        [basic(b"joe")],
        [basic(b"\xff:x")],
        ["Basic !"],
        ["Basic"],
        ["Bearer abc"],
        [basic(b"a:b"), basic(b"a:b")],
        [basic(b"a:" + b"x" * (CREDENTIAL_MAX + 1))],
        [basic(b"a" * (CREDENTIAL_MAX + 1) + b":x")],
    ],
)
def test_no_usable_credentials(values: list[str]) -> None:
    fields = [("Proxy-Authorization", value) for value in values]
    with pytest.raises(RejectionError) as caught:
        credentials_of(request("http://a/", fields=fields))
    assert (caught.value.status, caught.value.kind) == (407, "authentication")
    assert not caught.value.close, "the client tries again on the same connection"


def test_fields_between_two_neighbours_are_not_passed_on() -> None:
    fields = [
        ("Connection", "close, X-Secret"),
        ("connection", "x-other"),
        ("X-Secret", "1"),
        ("X-Other", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Connection", "keep-alive"),
        ("Proxy-Authorization", "Basic eDp5"),
        ("TE", "trailers"),
        ("Upgrade", "websocket"),
        ("Accept", "*/*"),
        ("X-CASE", "Kept"),
    ]
    passed = passed_on(request("http://a/", fields=fields))
    assert passed == [(b"Host", b"h"), (b"Accept", b"*/*"), (b"X-CASE", b"Kept")]


@pytest.mark.parametrize("options", ["X-A,X-B", "X-A, X-B", "X-A ,\tX-B", ",X-B,,X-A,"])
def test_options_of_connection_are_a_list_with_commas(options: str) -> None:
    # RFC 9110 section 5.6.1: with white space around the commas or none, and empty elements.
    fields = [("Connection", options), ("X-A", "1"), ("X-B", "1"), ("X-C", "1")]
    assert passed_on(request("http://a/", fields=fields)) == [(b"Host", b"h"), (b"X-C", b"1")]


def test_connection_does_not_take_the_framing_away() -> None:
    fields = [("Connection", "content-length, host"), ("Content-Length", "3")]
    assert (b"Content-Length", b"3") in passed_on(request("http://a/", "POST", fields))


def test_via_and_who_was_before_us() -> None:
    asked = request("http://a/", fields=[("Via", "1.0 other")], version="1.0")
    sent = origin_request(asked, parse_target(asked))
    assert [v for k, v in sent.headers if k == b"via"] == [b"1.0 other", b"1.0 socks-tunnel"]


def test_options_about_the_server_as_a_whole() -> None:
    asked = request("http://a", "OPTIONS")
    assert origin_request(asked, parse_target(asked)).target == b"*"


def test_max_forwards_counts_down_and_ends_here() -> None:
    asked = request("http://a/", "TRACE", [("Max-Forwards", "2")])
    sent = origin_request(asked, parse_target(asked))
    assert (b"max-forwards", b"1") in list(sent.headers)
    for value in ("0", "x", "9" * 5000):
        asked = request("http://a/", "OPTIONS", [("Max-Forwards", value)])
        with pytest.raises(RejectionError):
            origin_request(asked, parse_target(asked))
    asked = request("http://a/", "GET", [("Max-Forwards", "0")])
    assert (b"max-forwards", b"0") in list(origin_request(asked, parse_target(asked)).headers)


def test_max_forwards_has_nine_digits_at_most_and_what_follows_it_goes_on() -> None:
    fields = [("Max-Forwards", "9" * 9), ("Accept", "*/*")]
    asked = request("http://a/", "TRACE", fields)
    sent = list(origin_request(asked, parse_target(asked)).headers)
    assert (b"max-forwards", b"999999998") in sent
    assert (b"accept", b"*/*") in sent
    asked = request("http://a/", "TRACE", [("Max-Forwards", "1" + "0" * 9)])
    with pytest.raises(RejectionError) as caught:
        origin_request(asked, parse_target(asked))
    assert (caught.value.status, caught.value.close) == (501, False)
    assert str(caught.value) == "Max-Forwards ends the way of the request here"


def test_a_response_with_two_framings_loses_both() -> None:
    response = h11.Response(
        status_code=200,
        headers=[
            ("Transfer-Encoding", "chunked"),
            ("Content-Length", "3"),
            ("Proxy-Authenticate", "Basic realm=x"),
            ("Server", "x"),
        ],
    )
    assert list(client_response(response).headers) == [
        (b"server", b"x"),
        (b"via", b"1.1 socks-tunnel"),
    ]
