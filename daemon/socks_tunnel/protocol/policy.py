"""The access policy: may this destination be reached, and which rule says so.

Rules come as four lists: `denied_ports`, `denied_hosts`, `allowed_ports`, `allowed_hosts`. A
destination is allowed if no denied list has it and both allowed lists have it. How rules are
written: :mod:`socks_tunnel.protocol.rules`.

Theory of the decision. Rules about names and rules about addresses speak of different things, and a
client may ask for either. An IP literal is decided at once. A name is decided in two steps, because
only its addresses are what will be dialled:

    check(name)         DENIED    its port, or a denied name: never looked up
                        ALLOWED   an allowed name rule has it
                        RESOLVE   no name rule has it: each address decides for itself
    check_address(...)  for each address that the name resolves to

Three things hold for every address, however it was come by:

1.  An IPv4-mapped IPv6 address (`::ffff:192.0.2.7`) *is* the IPv4 address, in rules and requests.
2.  An IPv6 address that a translator or tunnel turns into an IPv4 address (6to4, NAT64, Teredo,
    IPv4-compatible) is denied wherever that IPv4 address is denied: the way around would lead to
    the same host. It is not *allowed* by IPv4 rules.
3.  Special addresses (loopback, link-local, multicast, broadcast, unspecified), and IPv6 addresses
    that embed one, are refused, also where an allowed name resolves to them, unless a rule names
    the address or a range within its block. `0.0.0.0` and `112.0.0.0/4` are no such rules,
    `127.0.0.0/8` is one.

Of several rules of one list that have a destination, the first one written is reported (of names:
the nearest one). Which of them it is never changes the verdict.
"""

from collections.abc import Sequence
from enum import Enum
from ipaddress import IPv4Address, IPv4Network, IPv6Network, ip_network
from itertools import compress
from typing import Final, NamedTuple, Self

from socks_tunnel.protocol.addresses import HostPort, IPAddress, canonical_host, parse_ip
from socks_tunnel.protocol.rules import (
    HostRules,
    IPNetwork,
    Names,
    Networks,
    PortRules,
    Ranges,
    RuleError,
    Rules,
    parse_into,
    unmapped,
)

NO_PORT_RULE: Final = "allowed_ports: no match"
NO_HOST_RULE: Final = "no allowed_hosts rule"
ADDRESSES_DECIDE: Final = "no rule for the name"
NOT_A_HOST: Final = "not a host name or address"


class Verdict(Enum):
    """What the policy says."""

    ALLOWED = "allowed"
    DENIED = "denied"
    RESOLVE = "resolve"
    """Of a name only: look it up and ask about each address."""


class Decision(NamedTuple):
    """A verdict and what it rests on, for the audit log and `policy test`.

    `rule` is the deciding rule as it was written, after the list that it stands in
    (`allowed_hosts: *.example.com`), or one of a few constant texts (`loopback address`,
    `allowed_ports: no match`).
    """

    verdict: Verdict
    rule: str


class PolicyError(RuleError):
    """Rules of a policy that cannot be parsed."""


# --- special addresses ------------------------------------------------------------------------

METADATA_SERVICES: Final = (
    # (address, whose it is, where that is documented). Whoever reaches one gets the credentials of
    # the host. Those in 169.254.0.0/16 and fe80::/10 are link-local and need no entry.
    ("168.63.129.16", "Azure WireServer", "learn.microsoft.com, What is IP address 168.63.129.16?"),
    ("100.100.100.200", "Alibaba Cloud", "alibabacloud.com, ECS: Instance metadata"),
    ("192.0.0.192", "Oracle Cloud Classic", "docs.oracle.com, Retrieving Instance Metadata"),
    ("fd00:ec2::254", "AWS EC2", "docs.aws.amazon.com, Retrieve instance metadata"),
    ("fd00:ec2::23", "AWS EKS Pod Identity", "docs.aws.amazon.com, EKS Pod Identity Agent"),
    ("fd20:ce::254", "Google Cloud", "cloud.google.com, About VM metadata"),
    ("fd00:c1::a9fe:a9fe", "Oracle Cloud", "docs.oracle.com, Getting Instance Metadata"),
    ("fd00:42::42", "Scaleway", "cloud-init documentation, Scaleway data source"),
    ("fd00:a9fe:a9fe::1", "Akamai Linode", "techdocs.akamai.com, Metadata service"),
    ("fd00:100::100:200", "Alibaba Cloud", "alibabacloud.com, ECS: Instance metadata"),
)
"""Metadata services of clouds outside the link-local blocks."""

_METADATA_BLOCKS: Final = tuple(
    (ip_network(address), f"metadata service ({owner})") for address, owner, _ in METADATA_SERVICES
)

_SPECIAL_IPV4: Final = (
    *((net, label) for net, label in _METADATA_BLOCKS if isinstance(net, IPv4Network)),
    (IPv4Network("0.0.0.0/32"), "unspecified address"),
    (IPv4Network("0.0.0.0/8"), "this-network address"),  # RFC 1122 section 3.2.1.3
    (IPv4Network("127.0.0.0/8"), "loopback address"),
    (IPv4Network("169.254.0.0/16"), "link-local address"),
    (IPv4Network("224.0.0.0/4"), "multicast address"),
    (IPv4Network("255.255.255.255/32"), "broadcast address"),
)

_SPECIAL_IPV6: Final = (
    *((net, label) for net, label in _METADATA_BLOCKS if isinstance(net, IPv6Network)),
    (IPv6Network("::/128"), "unspecified address"),
    (IPv6Network("::1/128"), "loopback address"),
    (IPv6Network("fe80::/10"), "link-local address"),
    (IPv6Network("ff00::/8"), "multicast address"),
)

_IPV4_AFTER: Final = (
    IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052
    IPv6Network("2002::/16"),  # 6to4, RFC 3056
    IPv6Network("::/96"),  # IPv4-compatible, RFC 4291 section 2.5.5.1
    IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated, RFC 2765
)
"""Prefixes right after which an IPv4 address is embedded."""

_EMBEDDINGS: Final = tuple(
    (int(prefix.network_address) >> 128 - prefix.prefixlen, 96 - prefix.prefixlen)
    for prefix in _IPV4_AFTER
)
"""The same as (bits of the prefix, bits after the IPv4 address), for one shift and comparison."""

_TEREDO: Final = 0x2001_0000
"""2001::/32, the upper 32 bits (RFC 4380)."""

_NAT64_LOCAL: Final = 0x0064_FF9B_0001
"""64:ff9b:1::/48, the upper 48 bits (RFC 8215)."""


def _translated(network: IPv4Network, prefix: IPv6Network) -> IPv6Network:
    """Returns the IPv6 network that embeds `network` after `prefix`."""
    room = 96 - prefix.prefixlen
    base = int(prefix.network_address) | int(network.network_address) << room
    return IPv6Network((base, prefix.prefixlen + network.prefixlen))


_SPECIAL_BLOCKS: Final[tuple[tuple[IPNetwork, str], ...]] = (
    *_SPECIAL_IPV4,
    *_SPECIAL_IPV6,
    *(
        (_translated(network, prefix), f"embedded {label}")
        for prefix in _IPV4_AFTER
        for network, label in _SPECIAL_IPV4
    ),
)


def _embedded_ipv4(address: IPAddress) -> list[IPv4Address]:
    """Returns the IPv4 addresses that a translator or tunnel could make of an IPv6 address."""
    value = int(address)
    if address.version == 4 or value <= 1:  # `::` and `::1` are in ::/96, but no IPv4 addresses
        return []
    found = [value >> after for bits, after in _EMBEDDINGS if value >> after + 32 == bits]
    if value >> 96 == _TEREDO:
        # RFC 4380 section 4: the server's address, and the client's with every bit inverted.
        found = [value >> 64, ~value]
    elif value >> 80 == _NAT64_LOCAL:
        found = _nat64_readings(value)
    return [IPv4Address(ipv4 & 0xFFFFFFFF) for ipv4 in found]


def _nat64_readings(value: int) -> list[int]:
    """Returns each IPv4 address that an address of the local-use NAT64 prefix can stand for.

    RFC 8215 leaves the length of the prefix in use to the operator, and with it the place of the
    IPv4 address (RFC 6052 section 2.2). All but the last form end in zeros, and octet 8 is zero::

        /48   bits 48-63 and 72-87      /64   bits 72-103
        /56   bits 56-63 and 72-95      /96   bits 96-127

    A reading in 0.0.0.0/8 only tells that its form is not the one in use, if there is another.
    """
    readings = [value & 0xFFFFFFFF]
    if (value >> 56) & 0xFF == 0:
        without_octet_8 = value >> 64 << 56 | value & (1 << 56) - 1
        readings += [
            without_octet_8 >> suffix & 0xFFFFFFFF
            for suffix in (24, 32, 40)
            if value & (1 << suffix) - 1 == 0
        ]
    return [ipv4 for ipv4 in readings if ipv4 >> 24] or readings


_SPECIAL: Final = Networks(_SPECIAL_BLOCKS)


def _special_label(address: IPAddress, embedded: Sequence[IPv4Address]) -> str | None:
    label = _SPECIAL.find(address)
    if label is None:
        inner = next(filter(None, map(_SPECIAL.find, embedded)), None)
        label = f"embedded {inner}" if inner else None
    return label


def _within_special_block(network: IPNetwork) -> bool:
    """Returns whether a rule speaks of special addresses only, and so lifts their refusal."""
    if network.prefixlen == network.max_prefixlen:
        address = network.network_address
        return _special_label(address, _embedded_ipv4(address)) is not None
    first, last = int(network.network_address), int(network.broadcast_address)
    return any(
        block.version == network.version
        and int(block.network_address) <= first
        and last <= int(block.broadcast_address)
        for block, _ in _SPECIAL_BLOCKS
    )


# --- the policy -------------------------------------------------------------------------------


DECISIONS_MAX: Final = 256
"""Destinations whose decision a policy remembers: clients ask for few, again and again."""


class Policy:
    """Rules, ready to decide. A decision takes microseconds with thousands of rules.

    Immutable, but for the decisions that it remembers, which depend on nothing else.
    """

    __slots__ = (
        "_allowed",
        "_allowed_names",
        "_allowed_ports",
        "_denied",
        "_denied_names",
        "_denied_ports",
        "_known",
        "_lifting",
        "allows_nothing",
    )

    def __init__(
        self,
        allowed_hosts: HostRules,
        allowed_ports: PortRules,
        denied_hosts: HostRules,
        denied_ports: PortRules,
    ) -> None:
        any_host = allowed_hosts.names or allowed_hosts.below or allowed_hosts.networks
        self.allows_nothing = not (any_host and allowed_ports.ranges)
        """Whether no destination can be allowed, for want of rules."""
        self._allowed_ports = Ranges(allowed_ports.ranges)
        self._allowed_names = Names(allowed_hosts.names, allowed_hosts.below)
        self._allowed = Networks(allowed_hosts.networks)
        self._lifting = Networks(
            [rule for rule in allowed_hosts.networks if _within_special_block(rule[0])]
        )
        self._denied_ports = Ranges(denied_ports.ranges)
        self._denied_names = Names(denied_hosts.names, denied_hosts.below)
        self._denied = Networks(denied_hosts.networks)
        self._known: dict[HostPort, Decision] = {}

    @classmethod
    def parse(
        cls,
        *,
        allowed_hosts: Rules,
        allowed_ports: Rules,
        denied_hosts: Rules = (),
        denied_ports: Rules = (),
    ) -> Self:
        """Makes a policy of rules as configuration holds them.

        Raises :class:`PolicyError`, which names every rule that cannot be parsed.
        """
        hosts, ports = HostRules(), PortRules()
        no_hosts, no_ports = HostRules(), PortRules()
        problems = [
            *parse_into(hosts, "allowed_hosts", allowed_hosts),
            *parse_into(ports, "allowed_ports", allowed_ports),
            *parse_into(no_hosts, "denied_hosts", denied_hosts),
            *parse_into(no_ports, "denied_ports", denied_ports),
        ]
        if problems:
            raise PolicyError(problems)
        return cls(hosts, ports, no_hosts, no_ports)

    @property
    def some_port(self) -> int:
        """A port that the port rules allow, 0 if there is none.

        Host rules do not depend on the port, so this one stands for all where only hosts matter.
        """
        cuts = self._allowed_ports.starts + self._denied_ports.starts
        for port in sorted(max(cut, 1) for cut in cuts):
            if self._allowed_ports.find(port) is not None and self._denied_ports.find(port) is None:
                return port
        return 0

    def check(self, destination: HostPort) -> Decision:
        """Decides about a destination as a client asked for it.

        Final for an IP literal. For a name see :class:`Verdict`: an ALLOWED name may be looked up,
        and each of its addresses still needs :meth:`check_address`.
        """
        decision = self._known.get(destination)
        if decision is None:
            if len(self._known) >= DECISIONS_MAX:
                self._known.clear()
            decision = self._known[destination] = self._check(destination)
        return decision

    def _check(self, destination: HostPort) -> Decision:
        try:
            host = canonical_host(destination.host)
        except ValueError:
            return Decision(Verdict.DENIED, NOT_A_HOST)
        address = parse_ip(host)
        if address is not None:
            return self._decide(address, destination.port, None)
        denied = self._denied_ports.find(destination.port) or self._denied_names.find(host)
        if denied is not None:
            return Decision(Verdict.DENIED, denied)
        if self._allowed_ports.find(destination.port) is None:
            return Decision(Verdict.DENIED, NO_PORT_RULE)
        allowed = self._allowed_names.find(host)
        if allowed is not None:
            return Decision(Verdict.ALLOWED, allowed)
        if not self._allowed:
            # No address could change this, so nothing is asked of any name server either.
            return Decision(Verdict.DENIED, NO_HOST_RULE)
        return Decision(Verdict.RESOLVE, ADDRESSES_DECIDE)

    def check_address(self, name_decision: Decision, address: IPAddress, port: int) -> Decision:
        """Decides about one address of a name of which :meth:`check` said `name_decision`."""
        if name_decision.verdict is Verdict.DENIED:
            return name_decision
        allowed_by_name = name_decision.verdict is Verdict.ALLOWED
        return self._decide(address, port, name_decision.rule if allowed_by_name else None)

    def choose(
        self, destination: HostPort, addresses: Sequence[IPAddress]
    ) -> tuple[Decision, list[IPAddress]]:
        """Returns the decision about a destination, and which of its addresses may be dialled.

        `addresses` is what a name resolved to; of an IP literal it is ignored. Without any the
        decision about the name stands as it is. ALLOWED if one address at least is allowed.
        """
        decision = self.check(destination)
        literal = parse_ip(destination.host)
        if literal is not None:
            return decision, [literal] if decision.verdict is Verdict.ALLOWED else []
        if decision.verdict is Verdict.DENIED or not addresses:
            return decision, []
        decisions = [self.check_address(decision, a, destination.port) for a in addresses]
        allowed = [d.verdict is Verdict.ALLOWED for d in decisions]
        dialable = list(compress(addresses, allowed))
        return decisions[allowed.index(True) if dialable else 0], dialable

    def _decide(self, address: IPAddress, port: int, name_rule: str | None) -> Decision:
        """Decides about an address; `name_rule` is the rule that allows the name it belongs to."""
        address = unmapped(address)
        embedded = _embedded_ipv4(address)
        denied = self._denied_ports.find(port) or next(
            filter(None, map(self._denied.find, (address, *embedded))), None
        )
        if denied is not None:
            return Decision(Verdict.DENIED, denied)
        if self._allowed_ports.find(port) is None:
            return Decision(Verdict.DENIED, NO_PORT_RULE)
        special = _special_label(address, embedded)
        if special is None:
            allowed = name_rule or self._allowed.find(address)
            return Decision(Verdict.ALLOWED if allowed else Verdict.DENIED, allowed or NO_HOST_RULE)
        lifted = self._lifting.find(address)
        if lifted is None:
            return Decision(Verdict.DENIED, special)
        return Decision(Verdict.ALLOWED, lifted)
