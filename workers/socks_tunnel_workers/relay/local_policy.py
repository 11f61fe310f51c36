"""The gateway's own policy, asked before anything enters the tunnel."""

from __future__ import annotations

from socks_tunnel.ops import audit
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policy import Policy, Verdict
from socks_tunnel_workers.relay.flow import Flow


def allowed_here(flow: Flow, policy: Policy, destination: HostPort) -> bool:
    """Returns whether the flow may go on; what the gateway cannot tell is left to the endpoint.

    A gateway resolves no names, so a name may be in doubt here. Each decision is one audit record
    and one metric.
    """
    decision = policy.check(destination)
    flow.session.counters.count("policy_decisions_total", decision.verdict.value)
    audit.decision(
        peer=flow.session.peer,
        conn_id=flow.conn_id,
        command=flow.command,
        destination=destination,
        verdict=decision.verdict.value,
        rule=decision.rule,
    )
    return decision.verdict is not Verdict.DENIED
