"""URLs of STUN and TURN servers, ranges of ports."""

import pytest

from socks_tunnel.protocol.ice_urls import IceUrl, parse_ice_url, parse_udp_ports


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("stun:stun.example.net", "stun:stun.example.net:3478"),
        ("stun:192.0.2.1:19302", "stun:192.0.2.1:19302"),
        ("stun:[2001:db8::1]", "stun:[2001:db8::1]:3478"),
        ("turn:a", "turn:a:3478?transport=udp"),
        ("turn:a?transport=udp", "turn:a:3478?transport=udp"),
        ("turn:a:80?transport=tcp", "turn:a:80?transport=tcp"),
        ("turn:[::1]:1?transport=tcp", "turn:[::1]:1?transport=tcp"),
        ("turns:a", "turns:a:5349"),
        ("turns:a:443?transport=tcp", "turns:a:443"),
    ],
)
def test_urls(text: str, canonical: str) -> None:
    url = parse_ice_url(text)
    assert str(url) == canonical
    assert parse_ice_url(canonical) == url


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("stun:a:1", IceUrl("stun", "a", 1, "udp")),
        ("stun:a:65535", IceUrl("stun", "a", 65535, "udp")),
        ("turn:a", IceUrl("turn", "a", 3478, "udp")),
        ("turns:a", IceUrl("turns", "a", 5349, "tcp")),
        ("turns:[::1]", IceUrl("turns", "::1", 5349, "tcp")),
    ],
)
def test_parts_of_urls(text: str, url: IceUrl) -> None:
    assert parse_ice_url(text) == url


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("stun:", r"^is not of the form stun:HOST:PORT or turn:HOST:PORT\?transport=udp$"),
        ("http://a", "not of the form"),
        ("stun://a", "not of the form"),
        ("stun:2001:db8::1", "not of the form"),
        ("stun:user@a", "not of the form"),
        ("stun:a:123456", "not of the form"),
        ("stun:a:0", "port 0"),
        ("turn:a:65536", "port 65536"),
        ("stun:[192.0.2.1]", "not an IPv6 address"),
        ("stun:[::g]", "not of the form"),
        ("stuns:a", "^is STUN over TLS, which finds no address for UDP; use stun:$"),
        (
            "stun:a?transport=udp",
            r"^has a transport, which a stun: URL cannot have \(RFC 7064\)$",
        ),
        ("turn:a?transport=sctp", "unknown transport 'sctp'"),
        ("turns:a?transport=udp", "^is TURN over DTLS, which is not supported; use transport=tcp$"),
    ],
)
def test_urls_that_cannot_be_used(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_ice_url(text)


def test_ranges_of_ports() -> None:
    assert parse_udp_ports("") is None
    assert parse_udp_ports("40000-40100") == (40_000, 40_100)
    assert parse_udp_ports("5000") == (5000, 5000)
    assert parse_udp_ports("1") == (1, 1)
    assert parse_udp_ports("1-65535") == (1, 65_535)
    assert parse_udp_ports("65535") == (65_535, 65_535)
    for text, reason in (
        ("40100-40000", "ends before it begins"),
        ("0-5", "outside of 1 to 65535"),
        ("1-65536", "outside of 1 to 65535"),
        ("65536-1", "outside of 1 to 65535"),
        ("1-2-3", "not a range"),
        ("a", "not a range"),
    ):
        with pytest.raises(ValueError, match=reason):
            parse_udp_ports(text)
