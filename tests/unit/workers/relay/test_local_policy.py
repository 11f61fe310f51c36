"""The gateway's own policy: what it says, and that it is recorded."""

from __future__ import annotations

import logging

import pytest

from socks_tunnel.ops import audit
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policy import Policy
from socks_tunnel_workers.relay.local_policy import allowed_here
from socks_tunnel_workers.services import Counters


@pytest.mark.parametrize(
    ("host", "verdict", "allowed"),
    [
        ("10.0.0.1", "allowed", True),
        ("192.0.2.1", "denied", False),
        ("www.example.com", "resolve", True),
    ],
)
def test_each_decision_is_counted_and_recorded(
    host: str, verdict: str, allowed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    policy = Policy.parse(allowed_hosts=["10.0.0.0/8"], allowed_ports=["*"])
    counters = Counters()
    with caplog.at_level(logging.INFO, audit.LOGGER_NAME):
        assert (
            allowed_here(
                counters, policy, HostPort(host, 80), peer="office", conn_id=5, command="connect"
            )
            is allowed
        )
    assert counters.pending("policy_decisions_total", verdict) == 1
    (record,) = caplog.records
    fields = record.fields  # type: ignore[attr-defined]  # the audit's own
    assert (fields["peer"], fields["flow"], fields["verdict"]) == ("office", 5, verdict)
