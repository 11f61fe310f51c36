"""Rules about hosts and ports: how they are parsed, and which of them has a destination.

What a policy or a route makes of them: test_policy.py, test_routes.py and their data.
"""

import re
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from socks_tunnel.protocol.rules import (
    HostRules,
    Names,
    Networks,
    PortRules,
    Ranges,
    RuleError,
    RuleProblem,
    parse_into,
    split_rules,
    unmapped,
    unmapped_network,
)

# --- IPv4-mapped addresses --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("::192.0.2.7", "::192.0.2.7"),
        ("2001:db8::7", "2001:db8::7"),
    ],
)
def test_a_mapped_address_is_the_ipv4_address(address: str, meant: str) -> None:
    assert unmapped(ip_address(address)) == ip_address(meant)


@pytest.mark.parametrize(
    ("network", "meant"),
    [
        ("::ffff:0:0/96", "0.0.0.0/0"),
        ("::ffff:0:0/95", None),
        ("::ffff:0:0/97", "0.0.0.0/1"),
        ("::ffff:192.0.2.0/120", "192.0.2.0/24"),
        ("::ffff:192.0.2.7/128", "192.0.2.7/32"),
        ("2001:db8::/96", None),
        ("192.0.2.0/24", None),
    ],
)
def test_a_range_of_mapped_addresses_is_the_ipv4_range(network: str, meant: str | None) -> None:
    written = ip_network(network, strict=False)
    assert unmapped_network(written) == (written if meant is None else ip_network(meant))


# --- tables -----------------------------------------------------------------------------------


def test_of_several_ranges_the_first_that_was_written_has_a_number() -> None:
    ranges = Ranges([(10, 20, "a"), (15, 30, "b"), (0, 12, "c"), (40, 40, "d"), (41, 41, "d")])
    assert [ranges.find(n) for n in (0, 9, 10, 12, 13, 20, 21, 30)] == list("ccaaaabb")
    assert [ranges.find(n) for n in (-1, 31, 39, 40, 41, 42)] == [None, None, None, "d", "d", None]
    assert ranges.starts == [0, 10, 21, 31, 40, 42]
    assert ranges
    assert not Ranges([])
    assert Ranges([]).find(0) is None


def test_an_address_is_found_among_those_of_its_version() -> None:
    networks = Networks([(ip_network("10.0.0.0/8"), "four"), (ip_network("2001:db8::/32"), "six")])
    assert networks.find(ip_address("10.1.2.3")) == "four"
    assert networks.find(ip_address("2001:db8::1")) == "six"
    assert networks.find(ip_address("::a01:203")) is None
    assert networks.find(ip_address("192.0.2.1")) is None
    assert networks
    assert Networks([(ip_network("10.0.0.0/8"), "four")])
    assert Networks([(ip_network("2001:db8::/32"), "six")])
    assert not Networks([])


def test_of_several_names_the_nearest_is_found_and_of_equal_ones_the_first() -> None:
    names = Names(
        [("a.corp", "name"), ("a.corp", "again")],
        [("corp", "far"), ("x.corp", "near"), ("corp", "again")],
    )
    assert names.find("a.corp") == "name"
    assert names.find("b.corp") == "far"
    assert names.find("x.corp") == "far"
    assert names.find("a.x.corp") == "near"
    assert names.find("b.a.x.corp") == "near"
    assert names.find("corp") is None
    assert names.find("b.example") is None


# --- parsing ----------------------------------------------------------------------------------


def test_rules_stand_in_lines_or_are_items() -> None:
    assert list(split_rules("a\n\n \n b ")) == [("line 1", "a"), ("line 4", " b ")]
    assert list(split_rules(["a", "", 80])) == [("item 1", "a"), ("item 2", ""), ("item 3", 80)]


def test_host_rules_are_addresses_ranges_names_and_what_is_below_them() -> None:
    hosts = HostRules()
    rules = ["0.0.0.0", "::", "192.0.2.7", "10.0.0.0/8", "192.0.2.9/32", "::ffff:192.0.2.8"]
    rules += ["A.Corp.", "*.b.corp"]
    assert parse_into(hosts, "hosts", rules) == []
    assert [(str(network), label) for network, label in hosts.networks] == [
        ("0.0.0.0/0", "hosts: 0.0.0.0"),
        ("::/0", "hosts: ::"),
        ("192.0.2.7/32", "hosts: 192.0.2.7"),
        ("10.0.0.0/8", "hosts: 10.0.0.0/8"),
        ("192.0.2.9/32", "hosts: 192.0.2.9/32"),
        ("192.0.2.8/32", "hosts: ::ffff:192.0.2.8"),
    ]
    assert hosts.names == [("a.corp", "hosts: A.Corp.")]
    assert hosts.below == [("b.corp", "hosts: *.b.corp")]


def test_port_rules_are_ports_ranges_and_all() -> None:
    ports = PortRules()
    assert parse_into(ports, "ports", [443, " 80 - 82 ", "*", "1-1", "65535"]) == []
    assert ports.ranges == [
        (443, 443, "ports: 443"),
        (80, 82, "ports: 80 - 82"),
        (0, 65_535, "ports: *"),
        (1, 1, "ports: 1-1"),
        (65_535, 65_535, "ports: 65535"),
    ]


NEITHER = "this is neither an address nor a name that can exist"
WILDCARD = "a wildcard is `*.` and a domain; all addresses are `0.0.0.0` and `::`"


@pytest.mark.parametrize(
    ("parsed", "rule", "reason"),
    [
        (HostRules(), "*", WILDCARD),
        (HostRules(), "10.0.0.256", NEITHER),
        (HostRules(), "*.::1", NEITHER),
        (HostRules(), "*.10.0.0.1", NEITHER),
        (HostRules(), "[2001:db8::]/32", "'[2001:db8::]' is not an IP address"),
        (HostRules(), "a.corp/8", "'a.corp' is not an IP address"),
        (HostRules(), "10.0.0.0/33", "'33' is not a prefix length (0 to 32)"),
        (HostRules(), "10.0.0.0/8/8", "'8/8' is not a prefix length (0 to 32)"),
        (HostRules(), "::/x", "'x' is not a prefix length (0 to 128)"),
        (
            HostRules(),
            "10.0.0.1/8",
            "the address has bits beyond the prefix; the range is 10.0.0.0/8",
        ),
        (HostRules(), True, "a rule is text or a port number, not bool"),
        (HostRules(), 1.5, "a rule is text or a port number, not float"),
        (PortRules(), "http", "'http' is not a port (1 to 65535; `*` is all of them)"),
        (PortRules(), "0", "'0' is not a port (1 to 65535; `*` is all of them)"),
        (PortRules(), "1-65536", "'65536' is not a port (1 to 65535; `*` is all of them)"),
        (PortRules(), "90-80", "the range ends before it starts"),
    ],
)
def test_a_rule_with_a_mistake_is_named_with_it(
    parsed: HostRules | PortRules, rule: Any, reason: str
) -> None:
    assert parse_into(parsed, "field", [rule]) == [
        RuleProblem("field", "item 1", str(rule), reason)
    ]
    assert parse_into(parsed, "field", [rule], "line 7") == [
        RuleProblem("field", "line 7", str(rule), reason)
    ]


def test_all_mistakes_are_told_in_one_line() -> None:
    problems = parse_into(HostRules(), "hosts", "10.0.0.1/8\n * \na.corp")
    error = RuleError(problems)
    assert error.problems == tuple(problems)
    with pytest.raises(RuleError, match=f"^{re.escape('; '.join(map(str, problems)))}$"):
        raise error
    assert [(p.position, p.text) for p in problems] == [("line 1", "10.0.0.1/8"), ("line 2", "*")]
