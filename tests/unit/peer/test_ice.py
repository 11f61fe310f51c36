"""Which addresses become candidates, and which servers are asked."""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import aioice.ice
import pytest

from socks_tunnel.peer import ice
from socks_tunnel.peer.ice import (
    IceSettings,
    LocalAddress,
    candidate_addresses,
    choose_addresses,
    rtc_servers,
)

MACHINE = [
    LocalAddress("lo", ip_address("127.0.0.1")),
    LocalAddress("eth0", ip_address("10.77.0.1")),
    LocalAddress("eth0", ip_address("2001:db8::1")),
    LocalAddress("wg0", ip_address("10.99.0.1")),
    LocalAddress("lo", ip_address("::1")),
]


@pytest.mark.parametrize(
    ("rules", "chosen"),
    [
        ([], ["10.77.0.1", "2001:db8::1", "10.99.0.1"]),
        (["eth0"], ["10.77.0.1", "2001:db8::1"]),
        (["10.99.0.1"], ["10.99.0.1"]),
        (["10.0.0.0/8"], ["10.77.0.1", "10.99.0.1"]),
        (["10.77.0.99/24"], ["10.77.0.1"]),
        (["2001:db8::/32", "wg0"], ["2001:db8::1", "10.99.0.1"]),
        (["eth0", "10.77.0.1"], ["10.77.0.1", "2001:db8::1"]),
        (["203.0.113.1"], []),
        (["eth7"], []),
        # Loopback only where a rule is itself loopback.
        (["0.0.0.0/0"], ["10.77.0.1", "10.99.0.1"]),
        (["::/0"], ["2001:db8::1"]),
        (["127.0.0.1"], ["127.0.0.1"]),
        (["127.0.0.0/8"], ["127.0.0.1"]),
        (["::1"], ["::1"]),
        (["lo"], ["127.0.0.1", "::1"]),
        (["127.0.0.1", "eth0"], ["127.0.0.1", "10.77.0.1", "2001:db8::1"]),
        (["127.0.0.2"], ["127.0.0.2"]),
    ],
)
def test_chosen_addresses(rules: list[str], chosen: list[str]) -> None:
    assert choose_addresses(rules, MACHINE) == [ip_address(text) for text in chosen]


def test_a_loopback_literal_needs_no_interface() -> None:
    assert choose_addresses(["127.0.0.1"], []) == [ip_address("127.0.0.1")]
    assert choose_addresses(["::1"], []) == []


def test_the_rule_holds_inside_its_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ice, "local_addresses", lambda: MACHINE)
    monkeypatch.setattr(ice, "_aioice_host_addresses", lambda **_: ["aioice's own choice"])

    def gathered(use_ipv4: bool = True, use_ipv6: bool = True) -> list[str]:
        return aioice.ice.get_host_addresses(use_ipv4=use_ipv4, use_ipv6=use_ipv6)

    assert gathered() == ["aioice's own choice"]
    with candidate_addresses(IceSettings(addresses=["lo"])):
        assert gathered() == ["127.0.0.1", "::1"]
        assert gathered(use_ipv6=False) == ["127.0.0.1"]
        assert gathered(use_ipv4=False) == ["::1"]
        with candidate_addresses(IceSettings()):
            assert gathered() == ["10.77.0.1", "2001:db8::1", "10.99.0.1"]
        assert gathered() == ["127.0.0.1", "::1"]
    assert gathered() == ["aioice's own choice"]


def test_no_servers_is_no_default_server() -> None:
    assert rtc_servers(IceSettings()) == []


def test_servers() -> None:
    stun, turn = rtc_servers(
        IceSettings(
            servers=[
                {"urls": ["stun:stun.example.net:3478"]},
                {"urls": "turn:turn.example.net", "username": "u", "credential": "c"},
            ]
        )
    )
    assert stun.urls == ["stun:stun.example.net:3478"]
    assert (turn.urls, turn.username, turn.credential) == ("turn:turn.example.net", "u", "c")


@pytest.mark.parametrize(
    ("servers", "sentence"),
    [
        ([{}], "no urls"),
        ([{"urls": []}], "no urls"),
        ([{"urls": "http://example.net"}], "cannot be used"),
        ([{"urls": "stun:"}], "cannot be used"),
        ([{"urls": "stun:a", "password": "p"}], "unknown key 'password'"),
    ],
)
def test_servers_that_cannot_be_used(servers: Sequence[dict[str, Any]], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        rtc_servers(IceSettings(servers=servers))
