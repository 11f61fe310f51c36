"""The access policy: any rules, any destination, and what must hold for all of them."""

import string
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

from hypothesis import assume, given
from hypothesis import strategies as st

from property.strategies import host_ports, hosts, ips, names, u16
from socks_tunnel.protocol.addresses import HostPort, IPAddress
from socks_tunnel.protocol.policy import (
    ADDRESSES_DECIDE,
    NO_HOST_RULE,
    NO_PORT_RULE,
    Policy,
    PolicyError,
    Verdict,
)
from socks_tunnel.protocol.rules import RuleProblem

ipv4 = st.ip_addresses(v=4).map(lambda address: IPv4Address(int(address)))
ipv6 = st.ip_addresses(v=6).map(lambda address: IPv6Address(int(address)))

SPECIAL = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/127",
    "fe80::/10",
    "ff00::/8",
)


def network_of(address: IPAddress, length: int) -> IPv4Network | IPv6Network:
    return ip_network((address, min(length, address.max_prefixlen)), strict=False)


networks = st.builds(network_of, ips, st.integers(1, 128))
host_rules = st.one_of(
    networks.map(str),
    ips.map(str),
    names,
    names.map("*.{}".format),
    st.sampled_from(("0.0.0.0", "::")),
)
ports = st.integers(1, 65_535)
port_rules = st.one_of(
    ports,
    ports.map(str),
    st.tuples(ports, ports).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    st.just("*"),
)
policies = st.builds(
    lambda hosts, ports, no_hosts, no_ports: Policy.parse(
        allowed_hosts=hosts, allowed_ports=ports, denied_hosts=no_hosts, denied_ports=no_ports
    ),
    st.lists(host_rules, max_size=8),
    st.lists(port_rules, max_size=4),
    st.lists(host_rules, max_size=4),
    st.lists(port_rules, max_size=2),
)
anywhere = Policy.parse(allowed_hosts=["0.0.0.0", "::"], allowed_ports="*")


# --- whatever is written, whatever is asked ---------------------------------------------------


@given(
    st.lists(st.text(string.printable, max_size=20) | host_rules, max_size=4),
    st.lists(st.text(string.printable, max_size=8) | st.integers() | port_rules, max_size=4),
    st.booleans(),
)
def test_any_rules_are_a_policy_or_an_error_that_names_the_rule(
    hosts_: list[str], ports_: list[str | int], as_text: bool
) -> None:
    host_list: str | list[str] = "\n".join(hosts_) if as_text else hosts_
    problems: tuple[RuleProblem, ...] = ()
    try:
        Policy.parse(allowed_hosts=host_list, allowed_ports=ports_)
    except PolicyError as error:
        problems = error.problems

    for problem in problems:
        lines = host_list if problem.field == "allowed_hosts" else ports_
        number = int(problem.position.split()[1])
        rule = (lines.split("\n") if isinstance(lines, str) else lines)[number - 1]
        assert problem.text == str(rule).strip()


@given(policies, st.text(), u16, st.lists(ips, max_size=4))
def test_any_destination_gets_a_verdict(
    policy: Policy, host: str, port: int, addresses: list[IPAddress]
) -> None:
    decision, dialled = policy.choose(HostPort(host, port), addresses)

    assert decision.rule
    assert not dialled or decision.verdict is Verdict.ALLOWED


@given(policies, host_ports, st.lists(ips, max_size=6))
def test_choose_is_check_and_check_address(
    policy: Policy, destination: HostPort, addresses: list[IPAddress]
) -> None:
    decision, dialled = policy.choose(destination, addresses)
    by_name = policy.check(destination)

    if by_name.rule == ADDRESSES_DECIDE:
        assert dialled == [a for a in addresses if a in dialled]
    for address in dialled:
        assert policy.check_address(by_name, address, destination.port).verdict is Verdict.ALLOWED
    if by_name.verdict is Verdict.DENIED:
        assert (decision, dialled) == (by_name, [])


# --- the same thing written in other ways -----------------------------------------------------


@given(policies, names, u16)
def test_case_and_a_final_dot_say_nothing(policy: Policy, name: str, port: int) -> None:
    expected = policy.check(HostPort(name, port))

    assert policy.check(HostPort(name.upper(), port)) == expected
    assert policy.check(HostPort(f"{name}.", port)) == expected


@given(policies, ipv4, u16)
def test_an_ipv4_mapped_address_is_the_ipv4_address(
    policy: Policy, address: IPv4Address, port: int
) -> None:
    mapped = HostPort(f"::ffff:{address}", port)

    assert policy.check(mapped) == policy.check(HostPort(str(address), port))


@given(policies, ips, u16)
def test_a_literal_is_decided_at_once_however_it_is_written(
    policy: Policy, address: IPAddress, port: int
) -> None:
    written = (f"{address}.",) if address.version == 4 else (f"[{address}]", address.exploded)

    decision = policy.check(HostPort(str(address), port))

    assert decision.verdict is not Verdict.RESOLVE
    assert {policy.check(HostPort(text, port)) for text in written} == {decision}


# --- against a model that goes through the rules one by one ------------------------------------


@given(st.lists(networks, max_size=10), st.lists(networks, max_size=4), ips, st.data())
def test_ranges_agree_with_going_through_them(
    allowed: list[IPv4Network | IPv6Network],
    denied: list[IPv4Network | IPv6Network],
    address: IPAddress,
    data: st.DataObject,
) -> None:
    if bool(allowed) and data.draw(st.booleans()):  # otherwise hardly an address is in a range
        network = data.draw(st.sampled_from(allowed))
        address = network[data.draw(st.integers(0, network.num_addresses - 1))]
    assume(not any(address in network_of(*split_network(block)) for block in SPECIAL))
    assume(anywhere.check(HostPort(str(address), 80)).verdict is Verdict.ALLOWED)
    assume(not any(is_translator(n) for n in (*allowed, *denied)))
    assume(not is_translator(network_of(address, 128)))
    policy = Policy.parse(
        allowed_hosts=[str(n) for n in allowed],
        allowed_ports="*",
        denied_hosts=[str(n) for n in denied],
    )

    denying = [n for n in denied if address in n]
    allowing = [n for n in allowed if address in n]
    decision = policy.check(HostPort(str(address), 80))

    if denying:
        assert decision == (Verdict.DENIED, f"denied_hosts: {denying[0]}")
    elif allowing:
        assert decision == (Verdict.ALLOWED, f"allowed_hosts: {allowing[0]}")
    else:
        assert decision == (Verdict.DENIED, NO_HOST_RULE)


def split_network(text: str) -> tuple[IPAddress, int]:
    network = ip_network(text)
    return network.network_address, network.prefixlen


def is_translator(network: IPv4Network | IPv6Network) -> bool:
    """Whether a range touches what stands for IPv4: the model knows nothing of that."""
    return network.version == 6 and any(
        network.overlaps(IPv6Network(prefix))
        for prefix in ("::/80", "64:ff9b::/32", "2002::/16", "2001::/32")
    )


@given(st.lists(port_rules, max_size=10), st.lists(port_rules, max_size=4), u16)
def test_ports_agree_with_going_through_them(
    allowed: list[str | int], denied: list[str | int], port: int
) -> None:
    def has(rule: str | int) -> bool:
        first, _, last = str(rule).partition("-")
        return rule == "*" or int(first) <= port <= int(last or first)

    policy = Policy.parse(allowed_hosts="0.0.0.0", allowed_ports=allowed, denied_ports=denied)

    denying = [rule for rule in denied if has(rule)]
    decision = policy.check(HostPort("192.0.2.7", port))

    if denying:
        assert decision == (Verdict.DENIED, f"denied_ports: {denying[0]}")
    elif any(has(rule) for rule in allowed):
        assert decision == (Verdict.ALLOWED, "allowed_hosts: 0.0.0.0")
    else:
        assert decision == (Verdict.DENIED, NO_PORT_RULE)


@given(st.lists(names, max_size=6), st.lists(names, max_size=6), names, st.data())
def test_names_agree_with_going_through_them(
    exact: list[str], below: list[str], name: str, data: st.DataObject
) -> None:
    if bool(below) and data.draw(st.booleans()):
        name = data.draw(st.sampled_from(("", "a.", "a.b."))) + data.draw(st.sampled_from(below))
    assume(len(name) <= 255)
    policy = Policy.parse(allowed_hosts=[*exact, *(f"*.{n}" for n in below)], allowed_ports="*")

    expected = name in exact or any(name.endswith(f".{n}") for n in below)

    decision = policy.check(HostPort(name, 80))
    assert (decision.verdict is Verdict.ALLOWED) == expected
    assert expected or decision == (Verdict.DENIED, NO_HOST_RULE)


# --- special addresses ------------------------------------------------------------------------


@given(st.sampled_from(SPECIAL), st.data())
def test_no_name_and_no_wider_rule_leads_to_a_special_address(
    block: str, data: st.DataObject
) -> None:
    network = ip_network(block)
    address = network[data.draw(st.integers(0, network.num_addresses - 1))]
    wider = network_of(network.network_address, data.draw(st.integers(0, network.prefixlen - 1)))
    assume(block != "::/127")  # two blocks side by side: its supernets are no blocks either
    policy = Policy.parse(allowed_hosts=["0.0.0.0", "::", "a.corp", str(wider)], allowed_ports="*")

    assert policy.check(HostPort(str(address), 80)).verdict is Verdict.DENIED
    assert policy.choose(HostPort("a.corp", 80), [address])[1] == []


EMBEDDINGS = (
    lambda v4: 0x0064_FF9B << 96 | v4,
    lambda v4: 0x0064_FF9B_0001 << 80 | v4,
    lambda v4: 0x2002 << 112 | v4 << 80 | 0x1234,
    lambda v4: v4,
    lambda v4: 0xFFFF << 48 | v4,
    lambda v4: 0x2001_0000 << 96 | 0xC000_0207 << 64 | v4 ^ 0xFFFF_FFFF,
    lambda v4: 0x2001_0000 << 96 | v4 << 64 | 0xC000_0207 ^ 0xFFFF_FFFF,
)


@given(st.sampled_from(EMBEDDINGS), ipv4, st.lists(ipv4.map(str), max_size=2))
def test_no_embedding_leads_to_an_ipv4_address_that_is_denied(
    embed: type, address: IPv4Address, others: list[str]
) -> None:
    embedding = ip_address(embed(int(address)))
    assume(int(embedding) > 1)
    policy = Policy.parse(
        allowed_hosts=["::", "0.0.0.0"], allowed_ports="*", denied_hosts=[*others, str(address)]
    )
    if address.is_unspecified:  # as a rule that is every IPv4 address
        assert policy.check(HostPort("192.0.2.7", 80)).verdict is Verdict.DENIED

    assert policy.check(HostPort(str(embedding), 80)).verdict is Verdict.DENIED


@given(st.sampled_from(EMBEDDINGS), ipv4)
def test_an_embedding_is_special_exactly_where_its_ipv4_address_is(
    embed: type, address: IPv4Address
) -> None:
    embedding = ip_address(embed(int(address)))
    assume(int(embedding) > 1)
    # An address of the local-use NAT64 prefix that ends in zeros has several readings.
    assume(int(embedding) >> 80 != 0x0064_FF9B_0001 or int(embedding) & 0xFFFFFF)

    assert (
        anywhere.check(HostPort(str(embedding), 80)).verdict
        is anywhere.check(HostPort(str(address), 80)).verdict
    )


# --- more rules -------------------------------------------------------------------------------


@given(st.lists(host_rules, max_size=5), host_rules, hosts, ports, st.lists(ips, max_size=3))
def test_an_added_permission_takes_nothing_away(
    rules: list[str], added: str, host: str, port: int, addresses: list[IPAddress]
) -> None:
    before = Policy.parse(allowed_hosts=rules, allowed_ports="*")
    after = Policy.parse(allowed_hosts=[*rules, added], allowed_ports="*")
    destination = HostPort(host, port)

    assert set(before.choose(destination, addresses)[1]) <= set(
        after.choose(destination, addresses)[1]
    )


@given(st.lists(host_rules, max_size=5), host_rules, hosts, ports, st.lists(ips, max_size=3))
def test_an_added_refusal_gives_nothing(
    rules: list[str], added: str, host: str, port: int, addresses: list[IPAddress]
) -> None:
    before = Policy.parse(allowed_hosts=rules, allowed_ports="*")
    after = Policy.parse(allowed_hosts=rules, allowed_ports="*", denied_hosts=[added])
    destination = HostPort(host, port)

    assert set(after.choose(destination, addresses)[1]) <= set(
        before.choose(destination, addresses)[1]
    )
