"""Settings of a link: which servers are asked, and how they reach the connection."""

from collections.abc import Sequence
from typing import Any

import pytest

from socks_tunnel.peer.ice.settings import (
    IceSettings,
    candidate_addresses,
    current_settings,
    parse_servers,
    rtc_servers,
)


def test_the_settings_hold_inside_their_block_only() -> None:
    outer, inner = IceSettings(addresses=["lo"]), IceSettings()
    assert current_settings() is None
    with candidate_addresses(outer):
        assert current_settings() is outer
        with candidate_addresses(inner):
            assert current_settings() is inner
        assert current_settings() is outer
    assert current_settings() is None


def test_servers() -> None:
    stun, turn, tls = parse_servers(
        IceSettings(
            servers=[
                {"urls": ["stun:stun.example.net"]},
                {
                    "urls": ["turn:[2001:db8::1]:3479", "turns:turn.example.net"],
                    "username": "u",
                    "credential": "c",
                },
            ]
        )
    )
    assert str(stun) == "STUN server stun:stun.example.net:3478"
    assert (turn.url.host, turn.url.port, turn.url.transport) == ("2001:db8::1", 3479, "udp")
    assert (turn.username, turn.credential) == ("u", "c")
    assert (tls.url.port, tls.url.transport) == (5349, "tcp")
    assert str(turn) == "TURN server turn:[2001:db8::1]:3479?transport=udp"


def test_secrets_are_not_shown() -> None:
    settings = IceSettings(
        servers=[{"urls": "turn:a", "username": "u", "credential": "hush"}],
        proxy="http://u:hush@proxy",
    )
    assert "hush" not in repr(settings) + repr(parse_servers(settings))


def test_aiortc_itself_asks_nobody() -> None:
    assert rtc_servers(IceSettings()) == []
    assert rtc_servers(IceSettings(servers=[{"urls": "stun:a"}])) == []


@pytest.mark.parametrize(
    ("servers", "sentence"),
    [
        ([{}], "no urls"),
        ([{"urls": []}], "no urls"),
        ([{"urls": "http://example.net"}], "cannot be used"),
        ([{"urls": "stun:"}], "cannot be used"),
        ([{"urls": "turn:a"}], "needs username and credential"),
        ([{"urls": "turns:a?transport=udp", "username": "u", "credential": "c"}], "DTLS"),
        ([{"urls": "stun:a", "password": "p"}], "unknown key 'password'"),
    ],
)
def test_servers_that_cannot_be_used(servers: Sequence[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rtc_servers(IceSettings(servers=servers))
