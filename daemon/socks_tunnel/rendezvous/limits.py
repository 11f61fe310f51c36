"""How much may be asked of the rendezvous service, and how fast. No clock: `now` is seconds."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

from socks_tunnel.protocol.addresses import parse_ip

BUCKETS_MAX: Final = 65_536
"""Addresses whose recent connections are remembered."""


class Bucket:
    """A token bucket: `burst` at once, `rate` a second for long."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float, amount: int = 1) -> bool:
        """Takes so many; returns whether there were so many."""
        self._fill(now)
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def is_full(self, now: float) -> bool:
        """Returns whether nothing was taken that has not come back."""
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        elapsed = max(0.0, now - self._at)
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._at = now


class Buckets:
    """A bucket for each of many keys, of which at most :data:`BUCKETS_MAX` are kept.

    When there is no room, those that are full again are forgotten, which changes nothing; if all
    are in use, the oldest one is forgotten.
    """

    def __init__(self, rate: float, burst: float, *, most: int = BUCKETS_MAX) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._buckets: dict[Hashable, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now: float) -> bool:
        """Takes one from the bucket of `key`; returns whether there was one."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._most:
                self._make_room(now)
            bucket = self._buckets[key] = Bucket(self._rate, self._burst, now)
        return bucket.take(now)

    def _make_room(self, now: float) -> None:
        self._buckets = {k: b for k, b in self._buckets.items() if not b.is_full(now)}
        # An eighth at a time: otherwise each new key would cost a walk over all of them.
        excess = len(self._buckets) - self._most * 7 // 8
        for key in list(self._buckets)[: max(0, excess)]:
            del self._buckets[key]


UNPROVED_MAX: Final = 512
"""Connections that have not proved a key yet. A further one ends the oldest of them, if that had
:data:`UNPROVED_TIME`, and is closed itself otherwise."""

UNPROVED_TIME: Final = 1.0
"""Seconds that each connection has at least, also in a flood. Who means it needs two round trips,
so a flood of idle ones cannot keep them out for long. When all clients come back at once, those
that are about to prove their key are not ended for others that would have the same fate."""

UNPROVED_PER_NETWORK_MAX: Final = 32
"""The same of one IPv4 address, or of one /64 of IPv6; further ones are closed at once."""

CONNECTS_PER_SECOND: Final = 20.0
CONNECTS_BURST: Final = 200
"""Connections from one such network: a second for long, and at once."""


class Ticket:
    """One connection that has not proved a key. `abort` closes it."""

    __slots__ = ("abort", "at", "network")

    def __init__(self, network: str, abort: Callable[[], None], at: float) -> None:
        self.network = network
        self.abort = abort
        self.at = at


class Door:
    """Admits connections before anything else is made for them, and ends the oldest in a flood."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        """Connections that were closed, by reason."""
        self._tickets: dict[Ticket, None] = {}  # in the order of their coming
        self._per_network: Counter[str] = Counter()
        self._connects = Buckets(CONNECTS_PER_SECOND, CONNECTS_BURST)

    def __len__(self) -> int:
        return len(self._tickets)

    def admit(self, address: str, abort: Callable[[], None], now: float) -> Ticket | None:
        """Returns a ticket for a connection from `address`; None if it has to be closed.

        An empty address is that of a proxy that is trusted: it has no limit of its own.
        """
        network = network_of(address)
        if network and self._per_network[network] >= UNPROVED_PER_NETWORK_MAX:
            self.counts["unproved"] += 1
            return None
        if network and not self._connects.take(network, now):
            self.counts["rate"] += 1
            return None
        if len(self._tickets) >= UNPROVED_MAX:
            oldest = next(iter(self._tickets))
            if now - oldest.at < UNPROVED_TIME:
                self.counts["full"] += 1
                return None
            self.counts["flood"] += 1
            self.release(oldest)
            oldest.abort()
        ticket = Ticket(network, abort, now)
        self._tickets[ticket] = None
        self._per_network[network] += 1
        return ticket

    def move(self, ticket: Ticket, address: str, now: float) -> bool:
        """Counts a proxy's connection as one of `address`; returns False if it has to be closed."""
        if ticket not in self._tickets:
            return False
        network = network_of(address)
        if self._per_network[network] >= UNPROVED_PER_NETWORK_MAX:
            self.counts["unproved"] += 1
            return False
        if not self._connects.take(network, now):
            self.counts["rate"] += 1
            return False
        self._subtract(ticket.network)
        ticket.network = network
        self._per_network[network] += 1
        return True

    def release(self, ticket: Ticket) -> None:
        """Forgets a connection that has proved a key, or has ended."""
        if ticket in self._tickets:
            del self._tickets[ticket]
            self._subtract(ticket.network)

    def _subtract(self, network: str) -> None:
        self._per_network[network] -= 1
        if not self._per_network[network]:
            del self._per_network[network]


def network_of(address: str) -> str:
    """Returns whom limits are for: an IPv4 address, or the /64 of an IPv6 address."""
    ip = parse_ip(address)
    if ip is None:
        return address
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None:
        return str(mapped)
    if ip.version == 4:
        return str(ip)
    return str(ipaddress.ip_network((int(ip), 64), strict=False))
