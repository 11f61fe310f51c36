"""The access decision: policy, names resolved where it needs them, audit record, metric.

One function for CONNECT, BIND, and each new destination of a UDP association.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import TYPE_CHECKING

from socks_tunnel.ops import audit
from socks_tunnel.protocol.addresses import HostPort, IPAddress, parse_ip
from socks_tunnel.protocol.errors import Reply
from socks_tunnel.protocol.policy import Decision, Policy, Verdict
from socks_tunnel_workers.targets.resolver import ResolveError

if TYPE_CHECKING:
    from socks_tunnel_workers.relay.flow import Flow
    from socks_tunnel_workers.worker import Worker


class AccessDeniedError(Exception):
    """The destination may not be reached, or its name has no address; `reply` says which."""

    def __init__(self, message: str, reply: Reply) -> None:
        super().__init__(message)
        self.reply = reply


def _record(worker: Worker, flow: Flow, destination: HostPort, decision: Decision) -> None:
    worker.count("policy_decisions_total", decision.verdict.value)
    audit.decision(
        peer=flow.link.peer,
        conn_id=flow.conn_id,
        command=flow.command,
        destination=str(destination),
        verdict=decision.verdict.value,
        rule=decision.rule,
    )


def decide_literal(flow: Flow, policy: Policy, destination: HostPort) -> list[IPAddress] | None:
    """Decide on an IP literal, without waiting; None if `destination` is a name.

    Raises :class:`AccessDeniedError`.
    """
    address = parse_ip(destination.host)
    if address is None:
        return None
    decision = policy.check(destination)
    _record(flow.link.worker, flow, destination, decision)
    if decision.verdict is not Verdict.ALLOWED:
        raise AccessDeniedError(f"{destination} is refused: {decision.rule}", Reply.NOT_ALLOWED)
    # An IPv4-mapped IPv6 address was decided as the IPv4 address that it is; it is dialled as that.
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return [mapped or address]


async def decide(
    flow: Flow, policy: Policy, destination: HostPort, *, seconds: float
) -> list[IPAddress]:
    """Decide whether `flow` may reach `destination`; give the addresses that may be dialled.

    A name is resolved once, here; what was checked is what is dialled. A name that the policy
    refuses as a name is not even looked up. Raises :class:`AccessDeniedError`.
    """
    literal = decide_literal(flow, policy, destination)
    if literal is not None:
        return literal
    worker = flow.link.worker
    decision = policy.check(destination)
    if decision.verdict is Verdict.DENIED:
        _record(worker, flow, destination, decision)
        raise AccessDeniedError(f"{destination} is refused: {decision.rule}", Reply.NOT_ALLOWED)
    try:
        resolved = await worker.resolver.resolve(destination.host, seconds=seconds)
    except ResolveError as error:
        _record(worker, flow, destination, Decision(Verdict.DENIED, f"not resolved: {error}"))
        raise AccessDeniedError(str(error), error.reply) from None
    decision, addresses = policy.choose(destination, resolved)
    _record(worker, flow, destination, decision)
    if decision.verdict is not Verdict.ALLOWED or not addresses:
        raise AccessDeniedError(f"{destination} is refused: {decision.rule}", Reply.NOT_ALLOWED)
    return addresses
