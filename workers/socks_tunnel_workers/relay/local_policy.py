"""The gateway's own policy, which is asked before a request enters the tunnel."""

from __future__ import annotations

from socks_tunnel.ops import audit
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policy import Policy, Verdict
from socks_tunnel_workers.services import Counters


def allowed_here(
    counters: Counters,
    policy: Policy,
    destination: HostPort,
    *,
    peer: str,
    conn_id: int,
    command: str,
) -> bool:
    """Returns whether a flow may go on to the endpoint.

    A gateway does not resolve names. So a name that is only allowed by its address goes on, and the
    endpoint decides. Each decision is one audit record and is counted in one metric.
    """
    decision = policy.check(destination)
    counters.count("policy_decisions_total", decision.verdict.value)
    audit.decision(
        peer=peer,
        conn_id=conn_id,
        command=command,
        destination=destination,
        verdict=decision.verdict.value,
        rule=decision.rule,
    )
    return decision.verdict is not Verdict.DENIED
