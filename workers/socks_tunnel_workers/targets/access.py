"""The access decision: the policy of the moment, names looked up where it needs them, the record.

One place for CONNECT, BIND, RESOLVE, and each destination of a UDP association. Three outcomes are
possible, and they are never mixed up: allowed, denied (by a rule), and unresolved (the name has no
address, or nobody could say at that moment).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from socks_tunnel.ops import audit
from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_ip
from socks_tunnel.protocol.errors import Reply
from socks_tunnel.protocol.policy import Decision, Policy, Verdict
from socks_tunnel_workers.targets.resolver import Failure, ResolveError, Resolver

UNRESOLVED: Final = "unresolved"
"""The verdict of the audit record and the metric where the policy was not to blame."""


class AccessDeniedError(Exception):
    """A rule forbids the destination; `reply` is what the client is told."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reply = Reply.NOT_ALLOWED


class UnresolvedError(Exception):
    """The name has no address (not `soft`), or none could be learned at the moment (`soft`)."""

    def __init__(self, message: str, *, reply: Reply, soft: bool) -> None:
        super().__init__(message)
        self.reply = reply
        self.soft = soft


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose flow wants to reach something, for the audit log and for its share of look-ups."""

    peer: str
    conn_id: int
    command: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be dialled, in the order to try, and for how many seconds that holds.

    `name` is the absolute name that was looked up, "" for an IP literal, whose `ttl` is None.
    """

    addresses: tuple[IPAddress, ...]
    ttl: int | None
    name: str = ""


class Access:
    """Decides for the flows of one worker.

    `count` adds one to a counter of metrics. `search` returns the domains in which names of one
    label are looked up (`targets.search`).
    """

    def __init__(
        self,
        resolver: Resolver,
        count: Callable[..., None],
        search: Callable[[], Sequence[str]] = tuple,
    ) -> None:
        self._resolver = resolver
        self._count = count
        self._search = search

    def literal(self, asker: Asker, policy: Policy, destination: HostPort) -> Allowed | None:
        """Decides about an IP literal, without waiting; returns None if it is a name.

        Raises :class:`AccessDeniedError`.
        """
        address = parse_ip(destination.host)
        if address is None:
            return None
        decision = policy.check(destination)
        self._record(asker, destination, decision.verdict.value, decision.rule)
        if decision.verdict is not Verdict.ALLOWED:
            raise AccessDeniedError(f"{destination} is refused: {decision.rule}")
        # An IPv4-mapped IPv6 address was decided as the IPv4 address that it is; it is dialled so.
        mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
        return Allowed((mapped or address,), None)

    async def decide(
        self,
        asker: Asker,
        policy: Callable[[], Policy],
        destination: HostPort,
        *,
        seconds: float,
        known: Sequence[IPAddress] = (),
    ) -> Allowed:
        """Decides whether `asker` may reach `destination`; returns the addresses to dial.

        `policy` returns the policy in force; it is asked again after the look-up, which takes time.
        A name is looked up once, here: what was checked is what is dialled. A name that the policy
        refuses as a name is not looked up at all. `known` are addresses of an earlier decision: an
        answer with none but these is no new decision, and leaves no record. Raises
        :class:`AccessDeniedError` and :class:`UnresolvedError`.
        """
        literal = self.literal(asker, policy(), destination)
        if literal is not None:
            return literal
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds  # of all candidates together
        denied: Decision | None = None
        absent: ResolveError | None = None
        for candidate in self._candidates(destination):
            decision = policy().check(candidate)
            if decision.verdict is Verdict.DENIED:
                denied = decision
                continue
            try:
                left = max(deadline - loop.time(), 0.0)
                resolved = await self._resolver.resolve(
                    candidate.host, seconds=left, peer=asker.peer
                )
            except ResolveError as error:
                if error.failure is Failure.ABSENT:
                    absent = error
                    continue
                raise self._unresolved(asker, candidate, error) from None
            decision, addresses = policy().choose(candidate, resolved.addresses)
            if not addresses or not set(addresses) <= set(known):
                self._record(asker, candidate, decision.verdict.value, decision.rule)
            if decision.verdict is not Verdict.ALLOWED or not addresses:
                raise AccessDeniedError(f"{candidate} is refused: {decision.rule}")
            return Allowed(tuple(addresses), resolved.ttl, candidate.host)
        if absent is not None:
            raise self._unresolved(asker, destination, absent)
        assert denied is not None, "there is one candidate at least"
        self._record(asker, destination, denied.verdict.value, denied.rule)
        raise AccessDeniedError(f"{destination} is refused: {denied.rule}")

    def recheck(
        self,
        asker: Asker,
        policy: Policy,
        destination: HostPort,
        name: str,
        addresses: Sequence[IPAddress],
    ) -> list[IPAddress]:
        """Returns which addresses of an earlier decision are allowed by the policy in force now.

        `name` is what was looked up, "" for an IP literal. None left is a denial, with its record.
        """
        judged = HostPort(name, destination.port) if name else destination
        if name:
            decision, permitted = policy.choose(judged, addresses)
        else:
            decision = policy.check(judged)
            permitted = list(addresses) if decision.verdict is Verdict.ALLOWED else []
        if not permitted:
            self._record(asker, judged, Verdict.DENIED.value, decision.rule)
        return permitted

    def _candidates(self, destination: HostPort) -> Iterator[HostPort]:
        """Yields the absolute names that a destination can mean, each to be judged by itself.

        Only a name of one label is looked for in the search domains: a name with a dot that does
        not exist must not find a search domain's wildcard (RFC 1535).
        """
        if "." not in destination.host:
            for domain in self._search():
                yield HostPort(f"{destination.host}.{domain}", destination.port)
        yield destination

    def _unresolved(
        self, asker: Asker, destination: HostPort, error: ResolveError
    ) -> UnresolvedError:
        self._record(asker, destination, UNRESOLVED, str(error))
        return UnresolvedError(str(error), reply=error.reply, soft=error.soft)

    def _record(self, asker: Asker, destination: HostPort, verdict: str, rule: str) -> None:
        self._count("policy_decisions_total", verdict)
        audit.decision(
            peer=asker.peer,
            conn_id=asker.conn_id,
            command=asker.command,
            destination=destination,
            verdict=verdict,
            rule=rule,
        )
