"""Limits for the load on the rendezvous service. No clock: `now` is in seconds."""

import ipaddress
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Final

from socks_tunnel.protocol.addresses import parse_ip

BUCKETS_MAX: Final = 65_536
"""Addresses whose recent connections are remembered."""


class Bucket:
    """A token bucket: `burst` tokens at once, and `rate` per second in the long run."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float, amount: int = 1) -> bool:
        """Takes so many tokens. Returns whether there were enough."""
        self._fill(now)
        if self._tokens < amount:
            return False
        self._tokens -= amount
        return True

    def is_full(self, now: float) -> bool:
        """Returns whether the bucket is full again."""
        self._fill(now)
        return self._tokens >= self._burst

    def _fill(self, now: float) -> None:
        elapsed = max(0.0, now - self._at)
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._at = now


class Buckets:
    """A bucket for each of many keys, of which at most :data:`BUCKETS_MAX` are kept.

    When there is no room, full buckets are forgotten, which changes nothing. If none is full, the
    oldest one is forgotten.
    """

    def __init__(self, rate: float, burst: float, *, most: int = BUCKETS_MAX) -> None:
        self._rate = rate
        self._burst = burst
        self._most = most
        self._buckets: dict[Hashable, Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def take(self, key: Hashable, now: float) -> bool:
        """Takes one token from the bucket of `key`. Returns whether there was one."""
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
"""Most connections that have not proved a key yet. A further one ends the oldest of them if that
has had enough time. Otherwise the new one is closed."""

UNPROVED_TIME: Final = 1.0
UNPROVED_TIME_MAX: Final = 8.0
"""Seconds that each connection has at least, also in a flood. An honest client needs a few round
trips, so a flood of idle connections cannot keep it out for long.

When thousands of clients come back at once, they wait for this service. If the bound were shorter
than their proofs take, each of them would be ended for another one with the same fate, and nobody
would ever come in. So the bound doubles, up to the second value, for each :data:`UNPROVED_MAX`
connections that were ended while nobody proved a key. It follows the time that successful clients
need."""

PROVED_SHARE: Final = 2.0
"""The bound is at least so many times the time that the last client needed for its proof."""

PROVED_DECAY: Final = 0.8
"""A proof lowers the bound at most to this part of it, as the next client may need longer."""

UNPROVED_PER_NETWORK_MAX: Final = 32
"""The same for one IPv4 address or one /64 of IPv6. Further ones are closed at once."""

CONNECTS_PER_SECOND: Final = 20.0
CONNECTS_BURST: Final = 200
"""Connections from one such network: per second in the long run, and at once."""


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
        self._tickets: dict[Ticket, None] = {}  # in the order of their arrival
        self._time = UNPROVED_TIME
        self._ended = 0  # since the last proof, or the last doubling of the bound
        self._per_network: Counter[str] = Counter()
        self._connects = Buckets(CONNECTS_PER_SECOND, CONNECTS_BURST)

    def __len__(self) -> int:
        return len(self._tickets)

    def admit(self, address: str, abort: Callable[[], None], now: float) -> Ticket | None:
        """Returns a ticket for a connection from `address`, or None if it has to be closed.

        An empty address is that of a trusted proxy, which has no limit of its own.
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
            if now - oldest.at < self._time:
                self.counts["full"] += 1
                return None
            self.counts["flood"] += 1
            self._ended += 1
            if self._ended >= UNPROVED_MAX:
                self._ended = 0
                self._time = min(2 * self._time, UNPROVED_TIME_MAX)
            self.release(oldest)
            oldest.abort()
        ticket = Ticket(network, abort, now)
        self._tickets[ticket] = None
        self._per_network[network] += 1
        return ticket

    def move(self, ticket: Ticket, address: str, now: float) -> bool:
        """Counts a proxy's connection as one from `address`.

        Returns False if it has to be closed.
        """
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

    def proved(self, ticket: Ticket, now: float) -> None:
        """Forgets a connection that has proved a key."""
        if ticket not in self._tickets:
            return
        needed = PROVED_SHARE * (now - ticket.at)
        self._time = min(max(UNPROVED_TIME, needed, PROVED_DECAY * self._time), UNPROVED_TIME_MAX)
        self._ended = 0
        self.release(ticket)

    def release(self, ticket: Ticket) -> None:
        """Forgets a connection that has ended."""
        if ticket in self._tickets:
            del self._tickets[ticket]
            self._subtract(ticket.network)

    def _subtract(self, network: str) -> None:
        self._per_network[network] -= 1
        if not self._per_network[network]:
            del self._per_network[network]


def network_of(address: str) -> str:
    """Returns the network to which limits apply: an IPv4 address, or the /64 of an IPv6 address."""
    ip = parse_ip(address)
    if ip is None:
        return address
    mapped = getattr(ip, "ipv4_mapped", None)
    if mapped is not None:
        return str(mapped)
    if ip.version == 4:
        return str(ip)
    return str(ipaddress.ip_network((int(ip), 64), strict=False))
