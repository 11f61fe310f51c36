"""The gateway's own policy, asked before anything enters the tunnel."""

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
    """Returns whether a flow may go on; what the gateway cannot tell is left to the endpoint.

    A gateway resolves no names, so a name may be in doubt here. Each decision is one audit record
    and one metric.
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
