"""Rules about hosts and ports, as policies and routes write them: which of them has a destination.

::

    0.0.0.0          every IPv4 address           10.0.0.0/8      a range
    ::               every IPv6 address           192.0.2.7       that address
    *.example.com    every name below it          example.com     that name

    443              a port                       8000-8100       a range        *   every port

An IPv4-mapped IPv6 address (`::ffff:192.0.2.7`) is the IPv4 address, in rules and in requests.
Names are compared as A-labels in lower case, without a final dot.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_network
from typing import Any, TypeAlias

from socks_tunnel.protocol.addresses import IPAddress, canonical_host, parse_ip

Rules: TypeAlias = str | Sequence[str | int]
"""Rules as configuration holds them: one string, a rule a line (the original's form), or a list."""

IPNetwork: TypeAlias = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class RuleProblem:
    """One rule that cannot be parsed: where it stands, what it is, what is wrong with it."""

    field: str
    position: str
    text: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field} {self.position}: {self.text!r}: {self.reason}"


class RuleError(ValueError):
    """Rules that cannot be parsed, all of them in `problems`; the text is one line."""

    def __init__(self, problems: Sequence[RuleProblem]) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = tuple(problems)


def unmapped(address: IPAddress) -> IPAddress:
    """Returns the IPv4 address that an IPv4-mapped IPv6 address is, or the address itself."""
    if isinstance(address, IPv6Address):
        return address.ipv4_mapped or address
    return address


def unmapped_network(network: IPNetwork) -> IPNetwork:
    """Returns the IPv4 range that a range of IPv4-mapped IPv6 addresses is, or the range itself."""
    if isinstance(network, IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return IPv4Network((mapped, network.prefixlen - 96))
    return network


# --- tables of rules --------------------------------------------------------------------------


class Ranges:
    """Which rule has a number: the line of numbers, cut where the answer changes."""

    __slots__ = ("_starts", "_texts")

    def __init__(self, ranges: Iterable[tuple[int, int, str]]) -> None:
        """Takes (first, last, text of the rule), in the order in which they were written."""
        by_start = sorted(
            (first, order, last, text) for order, (first, last, text) in enumerate(ranges)
        )
        cuts = sorted({r[0] for r in by_start} | {r[2] + 1 for r in by_start})
        self._starts: list[int] = []
        self._texts: list[str | None] = []
        open_rules: list[tuple[int, int, str]] = []  # a heap: the first one written on top
        pending = iter(by_start)
        following = next(pending, None)
        for cut in cuts:
            while following is not None and following[0] == cut:
                heappush(open_rules, following[1:])
                following = next(pending, None)
            while open_rules and open_rules[0][1] < cut:
                heappop(open_rules)
            text = open_rules[0][2] if open_rules else None
            if not self._texts or text != self._texts[-1]:
                self._starts.append(cut)
                self._texts.append(text)

    def __bool__(self) -> bool:
        return bool(self._starts)

    @property
    def starts(self) -> list[int]:
        """The numbers at which the answer changes, in order."""
        return self._starts

    def find(self, value: int) -> str | None:
        """Returns the text of the first rule that has `value`."""
        index = bisect_right(self._starts, value) - 1
        return self._texts[index] if index >= 0 else None


class Networks:
    """Which rule has an address."""

    __slots__ = ("_ipv4", "_ipv6")

    def __init__(self, networks: Sequence[tuple[IPNetwork, str]]) -> None:
        self._ipv4 = _ranges_of(networks, 4)
        self._ipv6 = _ranges_of(networks, 6)

    def __bool__(self) -> bool:
        return bool(self._ipv4) or bool(self._ipv6)

    def find(self, address: IPAddress) -> str | None:
        """Returns the text of the first rule that has `address`."""
        return (self._ipv4 if address.version == 4 else self._ipv6).find(int(address))


def _ranges_of(networks: Sequence[tuple[IPNetwork, str]], version: int) -> Ranges:
    return Ranges(
        (int(network.network_address), int(network.broadcast_address), text)
        for network, text in networks
        if network.version == version
    )


class Names:
    """Which rule has a name: exact names and `*.domain`, looked up label by label."""

    __slots__ = ("_below", "_exact")

    def __init__(self, names: Sequence[tuple[str, str]], below: Sequence[tuple[str, str]]) -> None:
        # Reversed, so that of two equal rules the first one written stays.
        self._exact = dict(reversed(names))
        self._below = dict(reversed(below))

    def find(self, name: str) -> str | None:
        """Returns the text of the rule that has the canonical `name`: of several, the nearest."""
        rule = self._exact.get(name)
        while rule is None:
            _, dot, name = name.partition(".")
            if not dot:
                return None
            rule = self._below.get(name)
        return rule


# --- parsing ----------------------------------------------------------------------------------


def split_rules(rules: Rules) -> Iterator[tuple[str, Any]]:
    """Yields where each rule stands, and the rule; blank lines of a string are no rules."""
    if isinstance(rules, str):
        for number, line in enumerate(rules.split("\n"), 1):
            if line.strip():
                yield f"line {number}", line
    else:
        for number, rule in enumerate(rules, 1):
            yield f"item {number}", rule


def _text_of(rule: object) -> str:
    """Returns the text of a rule that configuration may hold as anything."""
    if isinstance(rule, bool) or not isinstance(rule, str | int):
        raise TypeError(f"a rule is text or a port number, not {type(rule).__name__}")
    return str(rule).strip()


def _parse_network(text: str) -> IPNetwork | None:
    """Returns the addresses that a host rule names; None if the rule is about names."""
    address = parse_ip(text)
    if address is not None:
        if address.is_unspecified:
            return IPv4Network((0, 0)) if address.version == 4 else IPv6Network((0, 0))
        return unmapped_network(ip_network(address))
    base, slash, length = text.partition("/")
    if not slash:
        return None
    address = parse_ip(base)
    if address is None or "[" in base:
        raise ValueError(f"{base!r} is not an IP address")
    if not (length.isascii() and length.isdigit()) or int(length) > address.max_prefixlen:
        raise ValueError(f"{length!r} is not a prefix length (0 to {address.max_prefixlen})")
    network = ip_network((address, int(length)), strict=False)
    if network.network_address != address:
        raise ValueError(f"the address has bits beyond the prefix; the range is {network}")
    return unmapped_network(network)


def _parse_name(text: str) -> str:
    if "*" in text:
        raise ValueError("a wildcard is `*.` and a domain; all addresses are `0.0.0.0` and `::`")
    name = canonical_host(text)
    # No top-level domain is a number (RFC 3696 section 2), so this is an address that is mistyped,
    # or one where only a name can stand.
    if parse_ip(name) is not None or name.rpartition(".")[2].isdigit():
        raise ValueError("this is neither an address nor a name that can exist")
    return name


class HostRules:
    """One list of host rules, parsed."""

    def __init__(self) -> None:
        self.networks: list[tuple[IPNetwork, str]] = []
        self.names: list[tuple[str, str]] = []
        self.below: list[tuple[str, str]] = []

    def add(self, text: str, label: str) -> None:
        """Parses one rule. Raises :class:`ValueError` with what is wrong with it."""
        network = _parse_network(text)
        if network is not None:
            self.networks.append((network, label))
        elif text.startswith("*."):
            self.below.append((_parse_name(text[2:]), label))
        else:
            self.names.append((_parse_name(text), label))


class PortRules:
    """One list of port rules, parsed."""

    def __init__(self) -> None:
        self.ranges: list[tuple[int, int, str]] = []

    def add(self, text: str, label: str) -> None:
        """Parses one rule. Raises :class:`ValueError` with what is wrong with it."""
        if text == "*":
            self.ranges.append((0, 65535, label))
            return
        first_text, dash, last_text = text.partition("-")
        first = _parse_port(first_text.strip())
        last = _parse_port(last_text.strip()) if dash else first
        if first > last:
            raise ValueError("the range ends before it starts")
        self.ranges.append((first, last, label))


def _parse_port(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 65535:
        raise ValueError(f"{text!r} is not a port (1 to 65535; `*` is all of them)")
    return int(text)


def parse_into(
    parsed: HostRules | PortRules, field: str, rules: Rules, position: str = ""
) -> list[RuleProblem]:
    """Adds the rules to `parsed`, and returns those that cannot be parsed.

    `position` says where a single rule stands, in place of its number.
    """
    problems = []
    for place, rule in split_rules(rules):
        try:
            text = _text_of(rule)
            parsed.add(text, f"{field}: {text}")
        except (TypeError, ValueError) as error:
            problems.append(RuleProblem(field, position or place, str(rule).strip(), str(error)))
    return problems
