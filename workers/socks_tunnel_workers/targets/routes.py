"""Decides where the datagrams of an association go, and which senders may answer.

It has no socket and no clock: `now` is in seconds on any monotonic clock.

UDP has no connect, so only an answer shows whether an address works. If a destination has several
addresses, they are tried like this::

    racing   the first address gets the datagrams; after each ATTEMPT_DELAY without an answer one
             more address gets the same, up to RACERS_MAX, similar to RFC 8305. The first address
             that answers wins.
    settled  one address gets all. After TURN_SECONDS of sending without an answer, the next
             address is used.

            +--------+ an answer, or RACE_SECONDS without one  +---------+ --+ silence:
    new --> | racing | --------------------------------------> | settled |   | next address
            +--------+                                         +---------+ <-+

The addresses of a name hold for its TTL. A new answer that still has the address in use does not
change it.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from socks_tunnel.protocol.addresses import HostPort, IPAddress

ATTEMPT_DELAY: Final = 0.25
"""Seconds after which one more address is tried, besides the others (RFC 8305 section 5)."""

RACERS_MAX: Final = 3
"""Addresses that get the same datagram at most. Further ones are used after the race."""

RACE_SECONDS: Final = 3.0
"""Seconds without any answer after which each datagram goes to one address only."""

TURN_SECONDS: Final = 2.0
"""Seconds of sending without an answer after which the next address is used."""

KEPT_MAX: Final = 4
"""Datagrams of a race that are kept for the addresses that are tried later."""

KEPT_DATAGRAM_MAX: Final = 1500
"""Longest datagram in bytes that is kept. A longer one goes only to the addresses tried so far."""

REACHED_MAX: Final = 64
"""Addresses of one destination that may answer. A name server can name new ones for as long as the
association exists. The oldest are forgotten, but never the one in use."""

ROUTES_MAX: Final = 1024
"""Destinations that an association remembers. The least recently used one is forgotten first."""

Filtering: TypeAlias = Literal[
    "endpoint-independent", "address-dependent", "address-and-port-dependent"
]


class Route:
    """An allowed destination, and which of its addresses get its datagrams.

    `expires` is the time at which its name has to be looked up again, None for an IP literal.
    `name` is the name that was looked up, "" for an IP literal.
    """

    __slots__ = (
        "_begun",
        "_current",
        "_kept",
        "_racing_until",
        "_silent_since",
        "addresses",
        "direct",
        "expires",
        "mapped",
        "name",
        "reached",
        "refreshing",
    )

    def __init__(
        self,
        addresses: Sequence[IPAddress],
        *,
        now: float,
        expires: float | None,
        name: str = "",
        mapped: bool = False,
    ) -> None:
        assert addresses
        self.addresses = tuple(addresses)
        self.expires = expires
        self.name = name
        self.direct: Any = None
        """The owner's socket and socket address for the address in use. Set to None when the
        address changes."""
        self.mapped = mapped
        """Whether the client named an IPv4 address in its IPv6 form (RFC 4291 section 2.5.5.2)."""
        self.refreshing = False
        """Whether its name is being looked up again."""
        self.reached: dict[IPAddress, None] = {}
        """The addresses that a datagram was sent to, the oldest first. They may answer."""
        self._current = 0
        self._begun = 1
        self._kept: list[bytes] = []
        self._racing_until: float | None = now + RACE_SECONDS if len(addresses) > 1 else None
        self._silent_since: float | None = None

    @property
    def racing(self) -> bool:
        """Whether more than one address is being tried."""
        return self._racing_until is not None

    @property
    def current(self) -> IPAddress:
        """The address in use; in a race, the first one."""
        return self.addresses[self._current]

    def expired(self, now: float) -> bool:
        """Whether the name has to be looked up again."""
        return self.expires is not None and now >= self.expires

    def holds(self, now: float) -> bool:
        """Returns whether the address in use gets the next datagram. A fast form of :meth:`send`.

        If so, the owner sends with :attr:`direct`; if not, it calls :meth:`send`.
        """
        if self.direct is None:
            return False
        if len(self.addresses) == 1:
            return True
        if self._silent_since is None:
            self._silent_since = now
        return now - self._silent_since < TURN_SECONDS

    def send(self, data: bytes | memoryview, now: float) -> tuple[IPAddress, ...]:
        """Returns the addresses that a datagram goes to."""
        if len(self.addresses) == 1:
            return self.addresses
        if self._silent_since is None:
            self._silent_since = now
        if self._racing_until is not None:
            if now < self._racing_until:
                if len(self._kept) < KEPT_MAX and len(data) <= KEPT_DATAGRAM_MAX:
                    self._kept.append(bytes(data))
                return self.addresses[: self._begun]
            self._settle(self._current)
        if now - self._silent_since >= TURN_SECONDS:
            self._next(now)
        return (self.addresses[self._current],)

    def attempt(self, now: float) -> tuple[IPAddress, list[bytes]] | None:
        """Adds one more address to the race.

        Returns the address and the datagrams that it has missed. Returns None if there is no
        further address, or if the race is over.
        """
        if self._racing_until is None or now >= self._racing_until:
            return None
        if self._begun >= min(len(self.addresses), RACERS_MAX):
            return None
        address = self.addresses[self._begun]
        self._begun += 1
        return address, list(self._kept)

    def answered(self, address: IPAddress, now: float) -> None:
        """Notes a datagram from an address, which is used from now on unless another one works."""
        if address == self.addresses[self._current]:
            if self._racing_until is not None:
                self._settle(self._current)
            self._silent_since = None
            return
        # A late answer of an address that has lost the race must not replace the winner.
        silent = self._silent_since is not None and now - self._silent_since >= ATTEMPT_DELAY
        if (self._racing_until is not None or silent) and address in self.addresses:
            self._settle(self.addresses.index(address))
            self._silent_since = None

    def failed(self, address: IPAddress, now: float) -> None:
        """Goes on to the next address at once, because no route leads to the one in use."""
        if self._racing_until is None and address == self.addresses[self._current]:
            self._next(now)

    def renew(self, addresses: Sequence[IPAddress], *, expires: float | None = None) -> bool:
        """Takes new addresses of the name. Returns whether the one in use is among them.

        If not, nothing is changed, and the caller has to replace this route.
        """
        current = self.current
        if current not in addresses:
            return False
        if expires is not None:
            self.expires = expires
        self.direct = None
        begun = tuple(a for a in self.addresses[: self._begun] if a in addresses)
        self.addresses = begun + tuple(a for a in addresses if a not in begun)
        self._begun = max(len(begun), 1)
        self._current = self.addresses.index(current)
        if len(self.addresses) == 1:
            self._settle(0)
        return True

    def refreshed(self) -> None:
        """Notes that the look-up is over, so that the next one may begin."""
        self.refreshing = False

    def _next(self, now: float) -> None:
        self.direct = None
        self._current = (self._current + 1) % len(self.addresses)
        self._silent_since = now

    def _settle(self, index: int) -> None:
        self.direct = None
        self._current = index
        self._racing_until = None
        self._kept.clear()


@dataclass(frozen=True, slots=True)
class Refusal:
    """A destination that gets nothing until the time `until`. Drops are counted with `reason`."""

    reason: str
    until: float


class Routes:
    """All destinations of one association, and which senders may answer.

    `filtering` is that of RFC 4787 section 5: a sender may answer if something was sent to its
    address and port, or to its address, or always.
    """

    __slots__ = ("_answers", "_contacted", "_entries", "_filtering")

    def __init__(self, filtering: Filtering) -> None:
        self._filtering = filtering
        self._entries: OrderedDict[HostPort, Route | Refusal] = OrderedDict()
        self._contacted: Counter[tuple[str, int]] = Counter()
        self._answers: dict[tuple[str, int], list[Route]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def destinations(self) -> list[HostPort]:
        """Returns the destinations that are known."""
        return list(self._entries)

    def allowed(self) -> list[tuple[HostPort, Route]]:
        """Returns the allowed destinations with their routes, the least recently used first."""
        return [(d, entry) for d, entry in self._entries.items() if isinstance(entry, Route)]

    def get(self, destination: HostPort, now: float) -> Route | Refusal | None:
        """Returns the decision about a destination; None if it has to be decided."""
        entry = self._entries.get(destination)
        if entry is None:
            return None
        if isinstance(entry, Refusal) and now >= entry.until:
            del self._entries[destination]
            return None
        self._entries.move_to_end(destination)
        return entry

    def put(self, destination: HostPort, entry: Route | Refusal) -> None:
        """Remembers a decision, in place of an earlier one."""
        self.forget(destination)
        self._entries[destination] = entry
        if len(self._entries) > ROUTES_MAX:
            self.forget(next(iter(self._entries)))

    def forget(self, destination: HostPort) -> None:
        """Forgets a destination. Addresses that only belong to it may not answer any more."""
        entry = self._entries.pop(destination, None)
        if not isinstance(entry, Route):
            return
        for address in entry.reached:
            self._let_go(entry, address, destination.port)

    def forget_refusals(self) -> None:
        """Forgets all refusals, because the policy may have changed."""
        for destination, entry in list(self._entries.items()):
            if isinstance(entry, Refusal):
                del self._entries[destination]

    def reached(self, route: Route, address: IPAddress, port: int) -> None:
        """Notes that a datagram was sent to an address of a route. It may answer from now on."""
        if address not in route.reached:
            if len(route.reached) >= REACHED_MAX:
                oldest = next(each for each in route.reached if each != route.current)
                del route.reached[oldest]
                self._let_go(route, oldest, port)
            route.reached[address] = None
            host = str(address)
            self._contacted[self._key(host, port)] += 1
            self._answers.setdefault((host, port), []).append(route)

    def _let_go(self, route: Route, address: IPAddress, port: int) -> None:
        """Notes that an address may not answer for a route any more."""
        host = str(address)
        key = self._key(host, port)
        self._contacted[key] -= 1
        if not self._contacted[key]:
            del self._contacted[key]
        routes = self._answers[host, port]
        routes.remove(route)
        if not routes:
            del self._answers[host, port]

    def admits(self, host: str, port: int) -> bool:
        """Returns whether a sender may answer (RFC 4787 REQ-8)."""
        return self._filtering == "endpoint-independent" or self._key(host, port) in self._contacted

    def answering(self, host: str, port: int) -> Sequence[Route]:
        """Returns the routes that have sent to a sender."""
        return self._answers.get((host, port), ())

    def _key(self, host: str, port: int) -> tuple[str, int]:
        return (host, port if self._filtering == "address-and-port-dependent" else 0)
