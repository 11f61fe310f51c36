"""Which addresses are special, and which IPv4 addresses an IPv6 address stands for."""

from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_address

import pytest

from socks_tunnel.protocol import policy as module
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policy import Policy, Verdict


@pytest.mark.parametrize(
    ("network", "prefix", "translated"),
    [
        ("10.0.0.0/8", "64:ff9b::/96", "64:ff9b::a00:0/104"),
        ("10.1.0.0/16", "2002::/16", "2002:a01::/32"),
        ("127.0.0.0/8", "::/96", "::7f00:0/104"),
        ("1.2.3.4/32", "::ffff:0:0:0/96", "::ffff:0:102:304/128"),
    ],
)
def test_an_ipv4_network_after_a_prefix(network: str, prefix: str, translated: str) -> None:
    after = module._translated(IPv4Network(network), IPv6Network(prefix))
    assert after == IPv6Network(translated)


@pytest.mark.parametrize(
    ("address", "embedded"),
    [
        ("::", []),
        ("::1", []),
        ("::2", ["0.0.0.2"]),
        ("10.0.0.1", []),
        ("64:ff9b::a01:203", ["10.1.2.3"]),
        ("2002:a01:203:5::6", ["10.1.2.3"]),
        ("::ffff:0:a01:203", ["10.1.2.3"]),
        # Teredo: the server's, and the client's with every bit inverted.
        ("2001:0:a01:203:8000:1234:f5fe:fdfc", ["10.1.2.3", "10.1.2.3"]),
        ("2001:db8::1", []),
        # The local-use prefix of NAT64: the forms of RFC 6052 section 2.2.
        # Zeros behind one form may be a part of another.
        ("64:ff9b:1:a01:2:300::", ["2.3.0.0", "1.2.3.0", "10.1.2.3"]),  # /48
        ("64:ff9b:1:101:2:300::", ["2.3.0.0", "1.2.3.0", "1.1.2.3"]),
        ("64:ff9b:1:ff0a:1:203::", ["1.2.3.0", "10.1.2.3"]),  # /56
        ("64:ff9b:1:ffff:a:102:300:0", ["3.0.0.0", "10.1.2.3"]),  # /64
        ("64:ff9b:1:ffff:ffff:ffff:a01:203", ["10.1.2.3"]),  # /96: octet 8 is not zero
        ("64:ff9b:1:a01:2:300::1", ["0.0.0.1"]),  # no zeros behind: the last form alone
    ],
)
def test_the_ipv4_addresses_within_an_address(address: str, embedded: list[str]) -> None:
    found = module._embedded_ipv4(ip_address(address))
    assert found == [IPv4Address(ipv4) for ipv4 in embedded]


@pytest.mark.parametrize(
    ("rule", "host"),
    [("fe80::/64", "fe80::5"), ("127.0.0.0/9", "127.0.0.1"), ("ff02::/16", "ff02::1")],
)
def test_a_rule_within_a_special_block_lifts_its_refusal(rule: str, host: str) -> None:
    rules = Policy.parse(allowed_hosts=[rule], allowed_ports=["1-65535"])
    assert rules.check(HostPort(host, 80)).verdict is Verdict.ALLOWED


@pytest.mark.parametrize(
    ("hosts", "ports", "nothing"),
    [
        ([], ["80"], True),
        (["a.example"], [], True),
        ([], [], True),
        (["a.example"], ["80"], False),
        (["*.a.example"], ["80"], False),
        (["10.0.0.0/8"], ["80"], False),
    ],
)
def test_without_a_host_or_a_port_nothing_is_allowed(
    hosts: list[str], ports: list[str], nothing: bool
) -> None:
    assert Policy.parse(allowed_hosts=hosts, allowed_ports=ports).allows_nothing is nothing
