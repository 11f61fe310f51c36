"""What is said to a proxy, and what is made of its answers."""

import pytest

from socks_tunnel.peer.ice.proxy import ProxyError, check_response, request
from socks_tunnel.protocol.urls import Proxy

PLAIN = Proxy.parse("http://proxy:3128")
KNOWN = Proxy.parse("http://Aladdin:open%20sesame@proxy:3128")


def test_the_request() -> None:
    assert request(PLAIN, "turn.example.net", 443) == (
        b"CONNECT turn.example.net:443 HTTP/1.1\r\nHost: turn.example.net:443\r\n\r\n"
    )
    assert request(PLAIN, "2001:db8::1", 443).startswith(b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\n")


def test_the_login_is_that_of_the_rfc() -> None:
    """The example of RFC 7617 section 2."""
    assert b"\r\nProxy-Authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n\r\n" in request(
        KNOWN, "a", 1
    )


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 \r\n\r\n", b"HTTP/1.1 204\r\nVia: x\r\n\r\n"],
)
def test_agreement(head: bytes) -> None:
    check_response(head, PLAIN, "a", 1)


@pytest.mark.parametrize(
    ("proxy", "head", "sentence"),
    [
        (PLAIN, b"HTTP/1.1 407 No\r\n\r\n", r"proxy:3128 wants a user name \(407\)"),
        (KNOWN, b"HTTP/1.1 407 No\r\n\r\n", r"refuses the user name or password \(407\)"),
        (
            PLAIN,
            b"HTTP/1.1 403 Forbidden\r\n\r\n",
            r"refuses CONNECT to a port 1 \(403 Forbidden\)",
        ),
        (PLAIN, b"HTTP/1.1 503\r\n\r\n", r"refuses CONNECT to a port 1 \(503"),
        (PLAIN, b"HTTP/1.1 100 Continue\r\n\r\n", r"\(100 Continue\)"),
        (PLAIN, b"SSH-2.0-OpenSSH\r\n\r\n", "does not answer in HTTP"),
        (PLAIN, b"HTTP/2 200\r\n\r\n", "does not answer in HTTP"),
    ],
)
def test_refusals(proxy: Proxy, head: bytes, sentence: str) -> None:
    with pytest.raises(ProxyError, match=sentence) as caught:
        check_response(head, proxy, "a", 1)
    assert "sesame" not in str(caught.value)
