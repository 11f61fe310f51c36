"""What is told to a client whose request cannot be taken, word for word, and where the bounds are."""

import base64

import h11
import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.http_fields import (
    CREDENTIAL_MAX,
    HEAD_MAX,
    RejectionError,
    check_framing,
    credentials_of,
    new_origin,
    parse_target,
)
from socks_tunnel.protocol.socks5 import PasswordOffered


def request(
    target: str, *fields: tuple[str, str], method: str = "GET", version: str = "1.1"
) -> h11.Request:
    headers = [("Host", "a.b"), *fields]
    return h11.Request(method=method, target=target, headers=headers, http_version=version)


def facts(error: RejectionError) -> tuple[int, str, str, bool]:
    return error.status, error.kind, str(error), error.close


@pytest.mark.parametrize(
    ("asked", "status", "sentence"),
    [
        (request("http://a.b/", version="2.0"), 505, "only HTTP/1.0 and HTTP/1.1 are spoken"),
        (
            request("http://a.b/", ("Transfer-Encoding", "chunked"), version="1.0"),
            400,
            "the length of the body is in doubt",
        ),
        (
            request("a.b:1", ("Content-Length", "1"), method="CONNECT"),
            400,
            "CONNECT has no body",
        ),
    ],
)
def test_a_framing_that_is_refused(asked: h11.Request, status: int, sentence: str) -> None:
    with pytest.raises(RejectionError) as caught:
        check_framing(asked)
    assert facts(caught.value) == (status, "bad-request", sentence, True)


def test_a_connect_may_say_that_it_has_no_body() -> None:
    assert not check_framing(request("a.b:1", ("Content-Length", "0"), method="CONNECT"))


@pytest.mark.parametrize(
    ("target", "kind", "sentence"),
    [
        ("/x", "origin-form", "this is a proxy and has no pages of its own"),
        ("*://a.b/", "origin-form", "this is a proxy and has no pages of its own"),
        ("https://a.b/", "bad-request", "only http is forwarded; for https use CONNECT"),
        ("http://a.b/#x", "bad-request", "a request has no fragment"),
        ("http://a.b:0/", "bad-request", "port 0 is no destination"),
    ],
)
def test_a_target_that_is_refused(target: str, kind: str, sentence: str) -> None:
    with pytest.raises(RejectionError) as caught:
        parse_target(request(target))
    assert facts(caught.value) == (400, kind, sentence, True)


@pytest.mark.parametrize("target", ["http:///x", "http://?x"])
def test_a_target_without_a_host_is_refused(target: str) -> None:
    with pytest.raises(RejectionError, match=r"^no destination: .") as caught:
        parse_target(request(target))
    assert (caught.value.status, caught.value.kind) == (400, "bad-request")


def test_a_target_is_cut_where_its_path_begins() -> None:
    assert parse_target(request("http://a.b/?u=http://c.d")) == (
        HostPort("a.b", 80),
        b"a.b",
        b"/?u=http://c.d",
    )
    assert parse_target(request("a.b:1", method="CONNECT")) == (HostPort("a.b", 1), b"a.b:1", None)


def login(text: bytes) -> h11.Request:
    token = base64.b64encode(text).decode()
    return request("http://a.b/", ("Proxy-Authorization", f"Basic {token}"))


def test_a_name_and_a_password_are_as_long_as_in_socks5() -> None:
    name, password = "n" * CREDENTIAL_MAX, "p" * CREDENTIAL_MAX
    assert credentials_of(login(f"{name}:{password}".encode())) == PasswordOffered(name, password)


@pytest.mark.parametrize(
    "asked",
    [
        request("http://a.b/"),
        login(b"n" * (CREDENTIAL_MAX + 1) + b":p"),
        login(b"n:" + b"p" * (CREDENTIAL_MAX + 1)),
        request("http://a.b/", ("Proxy-Authorization", "Basic !bjpw")),
    ],
)
def test_what_is_no_login_is_told_what_is_wanted(asked: h11.Request) -> None:
    with pytest.raises(RejectionError) as caught:
        credentials_of(asked)
    sentence = "this proxy wants a user name and a password"
    assert facts(caught.value) == (407, "authentication", sentence, False)


def test_the_head_of_an_answer_may_be_as_long_as_the_limit() -> None:
    origin = new_origin()
    origin.send(request("/"))
    origin.send(h11.EndOfMessage())
    start = b"HTTP/1.1 200 K\r\nX: "
    origin.receive_data(start + b"x" * (HEAD_MAX - len(start)))
    assert origin.next_event() is h11.NEED_DATA
    origin.receive_data(b"x")
    with pytest.raises(h11.RemoteProtocolError):
        origin.next_event()
