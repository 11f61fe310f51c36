"""Routes: through which peers a gateway reaches a destination. Pure: no clock, and no links.

A configuration has a list of routes. Each has hosts, ports and peers, and the first one that has
the destination decides::

    destination --match--> route --candidates (from the supervisor)--> pick --> session

Hosts and ports are written as in a policy (:mod:`socks_tunnel.protocol.rules`), and `*` as a host
is every name and every address. A gateway resolves no names, so a name is matched as it was asked
for: only names and wildcards have it, ranges of addresses never do. That is how two networks with
the same addresses behind different peers are told apart.

Without any route there is one that has everything: the first peer that is up takes all.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import Final, Literal, NamedTuple, Protocol, Self, TypeVar

from socks_tunnel.protocol.addresses import canonical_host, parse_ip
from socks_tunnel.protocol.rules import (
    HostRules,
    IPNetwork,
    Names,
    Networks,
    PortRules,
    Ranges,
    RuleError,
    RuleProblem,
    Rules,
    parse_into,
    split_rules,
    unmapped,
)

RoutePolicy = Literal["first", "least-loaded", "nearest"]
"""How one of a route's peers is chosen for a new flow."""

ROUTES_MAX: Final = 1000
"""Routes that a configuration may have: they are looked at one after the other."""

PEERS_MAX: Final = 64
"""Peers that one route may name."""

ANY: Final = "*"
"""The host rule that every name and every address matches."""

DEFAULT: Final = "default"
"""What the one route is called that holds where none is configured."""

MATCHES_MAX: Final = 256
"""Destinations whose route a table remembers: clients ask for few, again and again."""

_S = TypeVar("_S")


class RouteRules(Protocol):
    """A route as it was written."""

    @property
    def name(self) -> str:
        """What it is called in logs and metrics."""

    @property
    def hosts(self) -> Rules:
        """Hosts that it has."""

    @property
    def ports(self) -> Rules:
        """Ports that it has."""

    @property
    def peers(self) -> Sequence[str]:
        """The peers that it leads to."""

    @property
    def policy(self) -> str:
        """How one of them is chosen: a :data:`RoutePolicy`."""


class Match(NamedTuple):
    """The route that has a destination, and the rules of it that do (`hosts: *.corp`)."""

    number: int
    host_rule: str
    port_rule: str


@dataclass(frozen=True, slots=True)
class Candidates:
    """The sessions that new flows of one route may use now, the best ones first.

    `preferred` are equal in rank, and `policy` chooses among them. `others` work at the moment, but
    something speaks against each: they are used if none of `preferred` can transmit.
    """

    preferred: tuple[int, ...] = ()
    others: tuple[int, ...] = ()


class Route:
    """One route, parsed."""

    __slots__ = (
        "_any",
        "_names",
        "_networks",
        "_ports",
        "hosts",
        "name",
        "peers",
        "policy",
        "ports",
    )

    def __init__(
        self, rules: RouteRules, hosts: HostRules, ports: PortRules, any_host: str | None
    ) -> None:
        self.name: Final = rules.name
        self.peers: Final = tuple(rules.peers)
        self.policy: Final = rules.policy
        self.hosts: Final = hosts
        self.ports: Final = ports
        self._any = any_host
        self._names = Names(hosts.names, hosts.below)
        self._networks = Networks(hosts.networks)
        self._ports = Ranges(ports.ranges)

    @classmethod
    def parse(cls, rules: RouteRules) -> Self:
        """Makes a route of what was written. Raises :class:`RuleError` with every mistake."""
        hosts, ports = HostRules(), PortRules()
        any_host = None
        problems: list[RuleProblem] = []
        for position, rule in split_rules(rules.hosts):
            if str(rule).strip() == ANY:
                any_host = f"hosts: {ANY}"
            else:
                problems += parse_into(hosts, "hosts", (rule,), position)
        problems += parse_into(ports, "ports", rules.ports)
        if problems:
            raise RuleError(problems)
        return cls(rules, hosts, ports, any_host)

    @property
    def any_host(self) -> bool:
        """Whether every host matches."""
        return self._any is not None

    def host_rule(self, host: str) -> str | None:
        """Returns the rule that has the host, which is canonical; None if none has."""
        address = parse_ip(host)
        if address is None:
            return self._names.find(host) or self._any
        return self._networks.find(unmapped(address)) or self._any

    def port_rule(self, port: int) -> str | None:
        """Returns the rule that has the port; None if none has."""
        return self._ports.find(port)


class RouteTable:
    """All routes of a gateway, in order. Immutable, but for what it remembers of its answers."""

    __slots__ = ("_known", "routes")

    def __init__(self, routes: Iterable[Route]) -> None:
        self.routes: Final = tuple(routes)
        self._known: dict[tuple[str, int | None], Match | None] = {}

    @classmethod
    def parse(cls, rules: Iterable[RouteRules]) -> Self:
        """Makes a table of what was written. Raises :class:`RuleError`."""
        return cls(Route.parse(each) for each in rules)

    @property
    def implicit(self) -> bool:
        """Whether no route is configured: there is the one that has everything, for all peers."""
        return len(self.routes) == 1 and not self.routes[0].peers

    def match(self, host: str, port: int | None) -> Match | None:
        """Returns the first route that has the destination; None if no route has.

        Without a port, only the host is compared: a question for a name has none. A host that is
        neither a name nor an address matches nothing.
        """
        key = host, port
        if key not in self._known:
            if len(self._known) >= MATCHES_MAX:
                self._known.clear()
            self._known[key] = self._match(host, port)
        return self._known[key]

    def _match(self, host: str, port: int | None) -> Match | None:
        try:
            host = canonical_host(host)
        except ValueError:
            return None
        for index, route in enumerate(self.routes):
            port_rule = "" if port is None else route.port_rule(port)
            if port_rule is None:
                continue
            host_rule = route.host_rule(host)
            if host_rule is not None:
                return Match(index, host_rule, port_rule)
        return None


def pick(
    policy: str,
    candidates: Candidates,
    usable: Callable[[int], _S | None],
    load: Callable[[_S], float],
) -> _S | None:
    """Returns the session that a new flow goes to; None if none can transmit at the moment.

    `usable` returns the session of a number if it can transmit. `load` is how many flows it has:
    `least-loaded` takes the one that has the fewest, and of equal ones the first.
    """
    found = [session for session in map(usable, candidates.preferred) if session is not None]
    if found:
        return min(found, key=load) if policy == "least-loaded" else found[0]
    return next((s for s in map(usable, candidates.others) if s is not None), None)


# --- routes that never match ------------------------------------------------------------------


def shadowed(table: RouteTable) -> dict[int, list[int]]:
    """Returns the routes that can never decide, each with the earlier routes that take all of it.

    Only what is certain is found: a route is shadowed if each of its hosts is one of earlier routes
    that have all its ports.
    """
    found: dict[int, list[int]] = {}
    for index, route in enumerate(table.routes):
        wanted = _port_set(route)
        earlier = [
            number for number, other in enumerate(table.routes[:index]) if _covers(other, wanted)
        ]
        used = _taken_by(route, [(number, table.routes[number]) for number in earlier])
        if used is not None:
            found[index] = sorted(used)
    return found


def _port_set(route: Route) -> list[range]:
    return [range(first, last + 1) for first, last, _ in route.ports.ranges]


def _covers(route: Route, ports: list[range]) -> bool:
    """Returns whether the route has all of the ports, port 0 apart."""
    for each in ports:
        reach = max(each.start, 1)
        for first, last, _ in sorted(route.ports.ranges):
            if first <= reach:
                reach = max(reach, last + 1)
        if reach < each.stop:
            return False
    return True


def _taken_by(route: Route, earlier: list[tuple[int, Route]]) -> set[int] | None:
    """Returns the earlier routes that have all hosts of `route`; None if some host is left."""
    everything = [number for number, other in earlier if other.any_host]
    if everything:
        return {everything[0]}
    if route.any_host:
        return None
    used: set[int] = set()
    for name, _ in route.hosts.names:
        number = next((n for n, other in earlier if other.host_rule(name)), None)
        if number is None:
            return None
        used.add(number)
    for domain, _ in route.hosts.below:
        number = next((n for n, other in earlier if _has_below(other, domain)), None)
        if number is None:
            return None
        used.add(number)
    for network, _ in route.hosts.networks:
        numbers = _having_network(network, earlier)
        if not numbers:
            return None
        used |= numbers
    return used


def _has_below(route: Route, domain: str) -> bool:
    """Returns whether the route has every name below the domain."""
    return any(domain == above or domain.endswith(f".{above}") for above, _ in route.hosts.below)


def _having_network(network: IPNetwork, earlier: list[tuple[int, Route]]) -> set[int]:
    """Returns the routes whose ranges together have the whole network; none if they do not."""
    parts: list[tuple[int, IPNetwork]] = [
        (number, part)
        for number, other in earlier
        for part, _ in other.hosts.networks
        if part.version == network.version and part.overlaps(network)
    ]
    whole = _collapsed([part for _, part in parts])
    if any(network.subnet_of(part) for part in whole):  # type: ignore[arg-type]  # the same version
        return {number for number, _ in parts}
    return set()


def _collapsed(parts: list[IPNetwork]) -> list[IPNetwork]:
    four = [part for part in parts if isinstance(part, IPv4Network)]
    six = [part for part in parts if isinstance(part, IPv6Network)]
    return [*collapse_addresses(four), *collapse_addresses(six)]
