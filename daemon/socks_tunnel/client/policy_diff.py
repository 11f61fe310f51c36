"""Compares two policies for open flows and for destinations of the audit records. No I/O."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from socks_tunnel.ops.audit import DECISION
from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_host_port
from socks_tunnel.protocol.policies import PolicySet
from socks_tunnel.protocol.policy import Policy, Verdict

DESTINATIONS_MAX: Final = 100_000
"""Different destinations that are compared. Further ones are only counted."""

Lookup = Callable[[HostPort], list[IPAddress]]
"""Returns the addresses of a name now; none if it cannot be looked up."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two configurations: its policies, and the names of its peers."""

    policies: PolicySet
    peers: frozenset[str]


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict of a policy: `allowed`, `denied`, or `unresolved` if a name has no addresses."""

    verdict: str
    rule: str

    def __str__(self) -> str:
        return f"{self.verdict} ({self.rule})"


@dataclass(slots=True)
class Change:
    """A destination of a peer about which the two policies differ."""

    peer: str
    """Empty if a gateway has refused before it chose a peer."""
    destination: HostPort
    before: Judgement
    after: Judgement
    flows: list[Mapping[str, Any]] = field(default_factory=list)
    """Rows of the open flows to it."""
    times: int = 0
    """Requests for it in the audit records."""


class Comparison:
    """Compares two configurations for the flows and audit records that it is given."""

    def __init__(self, old: Side, new: Side, lookup: Lookup) -> None:
        self.associations = 0
        """Open UDP associations. They have no destination, as each datagram has its own."""
        self.left_out = 0
        """Destinations beyond :data:`DESTINATIONS_MAX`."""
        self.compared = 0
        self._old, self._new, self._lookup = old, new, lookup
        self._seen: dict[tuple[str, HostPort], Change | None] = {}
        self._addresses: dict[str, list[IPAddress]] = {}

    def flow(self, row: Mapping[str, Any]) -> None:
        """Takes an open flow, as a row of `connections`."""
        if not row["destination"]:
            self.associations += 1
            return
        change = self._change(row["peer"], row["destination"])
        if change is not None:
            change.flows.append(row)

    def record(self, record: Mapping[str, Any], since: datetime) -> None:
        """Takes an audit record. Those before `since` are ignored."""
        time = record.get("time")
        if record["message"] != DECISION or (time and datetime.fromisoformat(time) < since):
            return
        change = self._change(record["peer"], record["destination"])
        if change is not None:
            change.times += 1

    def changes(self) -> list[Change]:
        """Returns the changed destinations: most open flows first, then most requests."""
        found = [change for change in self._seen.values() if change is not None]
        return sorted(found, key=lambda change: (-len(change.flows), -change.times))

    def _change(self, peer: str, text: str) -> Change | None:
        try:
            destination = parse_host_port(text)
        except ValueError:
            return None  # a question for a name has no port
        key = peer, destination
        if key not in self._seen:
            if len(self._seen) >= DESTINATIONS_MAX:
                self.left_out += 1
                return None
            self.compared += 1
            before = self._judge(self._old, peer, destination)
            after = self._judge(self._new, peer, destination)
            differ = before.verdict != after.verdict
            self._seen[key] = Change(peer, destination, before, after) if differ else None
        return self._seen[key]

    def _judge(self, side: Side, peer: str, destination: HostPort) -> Judgement:
        if peer and peer not in side.peers:
            return Judgement(Verdict.DENIED.value, "there is no such peer")
        rules = side.policies.for_peer(peer) if peer else side.policies.default
        if rules is None:
            return Judgement(Verdict.ALLOWED.value, "this gateway has no policy")
        return self._judge_by(rules, destination)

    def _judge_by(self, rules: Policy, destination: HostPort) -> Judgement:
        decision = rules.check(destination)
        if decision.verdict is Verdict.RESOLVE:
            host = destination.host
            if host not in self._addresses:
                self._addresses[host] = self._lookup(destination)
            if not self._addresses[host]:
                return Judgement("unresolved", decision.rule)
            decision, _ = rules.choose(destination, self._addresses[host])
        return Judgement(decision.verdict.value, decision.rule)
