"""The access decision: asks the policy in force, looks names up, and writes the audit record.

It is the only one, for CONNECT, BIND, RESOLVE, and each destination of a UDP association. It has
three outcomes: allowed, denied (by a rule), and unresolved (the name has no address, or its look-up
failed).
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
"""The verdict in the audit record and the metric if the look-up of a name was the reason."""


class AccessDeniedError(Exception):
    """A rule forbids the destination. `reply` is the SOCKS reply for the client."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.reply = Reply.NOT_ALLOWED


class UnresolvedError(Exception):
    """The name has no address, or with `soft` its look-up failed and may work later."""

    def __init__(self, message: str, *, reply: Reply, soft: bool) -> None:
        super().__init__(message)
        self.reply = reply
        self.soft = soft


@dataclass(frozen=True, slots=True)
class Asker:
    """The flow that a decision is for: it is named in the audit record.

    `peer` is also the one whose share of look-ups is used.
    """

    peer: str
    conn_id: int
    command: str


@dataclass(frozen=True, slots=True)
class Allowed:
    """The addresses that may be dialled, in the order to try.

    `ttl` says for how many seconds they hold; it is None for an IP literal. `name` is the absolute
    name that was looked up, "" for an IP literal.
    """

    addresses: tuple[IPAddress, ...]
    ttl: int | None
    name: str = ""


class Access:
    """Decides for the flows of one worker.

    `count` is :meth:`~socks_tunnel_workers.services.Counters.count`. `search` returns the domains
    in which names of one label are looked up (`targets.search`).
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
        # The policy has judged an IPv4-mapped IPv6 address as IPv4, so it is dialled as IPv4.
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

        `policy` returns the policy in force. It is called again after the look-up, which takes up
        to `seconds`. A name is looked up only here, so the addresses that were checked are the ones
        that are dialled. A name that the policy refuses as a name is not looked up. `known` are
        addresses of an earlier decision: if the answer has no others, no new record is written.
        Raises :class:`AccessDeniedError` and :class:`UnresolvedError`.
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
        """Returns the addresses of an earlier decision that `policy` allows.

        `name` is the name that was looked up, "" for an IP literal. If no address is left, the
        denial is counted and gets a record.
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
        """Yields the absolute names that a destination can mean. Each is judged by itself.

        Only a name of one label is looked up in the search domains: a name with a dot that does
        not exist must not match a wildcard of a search domain (RFC 1535).
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
