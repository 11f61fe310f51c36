"""The first route that has a destination decides: compared with rules that are tried one by one."""

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from socks_tunnel.protocol.routes import RouteTable, shadowed
from socks_tunnel.protocol.settings import RouteSettings

names = st.lists(st.sampled_from(["a", "b", "corp", "x"]), min_size=1, max_size=3).map(".".join)
networks = st.builds(
    lambda first, length: str(ip_network((first << 29, length), strict=False)),
    st.integers(0, 7),
    st.integers(0, 5),
)
addresses = st.integers(0, 7).map(lambda first: str(ip_address(first << 29 | 5)))
host_rules = st.one_of(
    st.just("*"), names, names.map(lambda name: f"*.{name}"), networks, addresses
).filter(lambda rule: rule != "0.0.0.0")
port_rules = st.one_of(
    st.just("*"),
    st.integers(1, 9).map(str),
    st.tuples(st.integers(1, 9), st.integers(1, 9)).map(lambda p: f"{min(p)}-{max(p)}"),
)
routes = st.lists(
    st.tuples(
        st.lists(host_rules, min_size=1, max_size=3), st.lists(port_rules, min_size=1, max_size=2)
    ),
    max_size=5,
)
destinations = st.tuples(st.one_of(names, addresses), st.none() | st.integers(1, 10))


def has_host(rule: str, host: str) -> bool:
    if rule == "*":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return host.endswith(rule[1:]) if rule.startswith("*.") else host == rule
    try:
        return address in ip_network(rule)
    except ValueError:
        return False


def has_port(rule: str, port: int) -> bool:
    if rule == "*":
        return True
    first, _, last = rule.partition("-")
    return int(first) <= port <= int(last or first)


def oracle(written: list[tuple[list[str], list[str]]], host: str, port: int | None) -> int | None:
    for number, (hosts, ports) in enumerate(written):
        if any(has_host(rule, host) for rule in hosts) and (
            port is None or any(has_port(rule, port) for rule in ports)
        ):
            return number
    return None


def table_of(written: list[tuple[list[str], list[str]]]) -> RouteTable:
    return RouteTable.parse(
        RouteSettings(str(n), tuple(hosts), tuple(ports), ("peer",))
        for n, (hosts, ports) in enumerate(written)
    )


@given(routes, destinations)
def test_the_first_match_decides(
    written: list[tuple[list[str], list[str]]], destination: tuple[str, int | None]
) -> None:
    match = table_of(written).match(*destination)
    assert (None if match is None else match.number) == oracle(written, *destination)


@given(routes, st.lists(destinations, min_size=20, max_size=40))
def test_a_route_that_is_said_never_to_decide_never_does(
    written: list[tuple[list[str], list[str]]], asked: list[tuple[str, int | None]]
) -> None:
    never = shadowed(table_of(written))
    for host, port in asked:
        if port is not None:
            assert oracle(written, host, port) not in never
