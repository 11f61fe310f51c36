"""The gateway's own policy: what it denies never enters the tunnel."""

import logging
from typing import cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policy import Policy
from socks_tunnel_workers.relay.flow import Flow
from socks_tunnel_workers.relay.local_policy import allowed_here
from socks_tunnel_workers.services import Counters


class FakeSession:
    def __init__(self) -> None:
        self.peer = "office"
        self.counters = Counters()


class FakeFlow:
    def __init__(self) -> None:
        self.session = FakeSession()
        self.conn_id = 7
        self.command = "connect"


@pytest.mark.parametrize(
    ("host", "allowed", "verdict"),
    [
        ("10.0.0.1", True, "allowed"),
        ("192.168.0.1", False, "denied"),
        ("unknown.example", True, "resolve"),
    ],
)
def test_what_is_denied_here_stays_here(
    host: str, allowed: bool, verdict: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "socks_tunnel.audit")
    flow = FakeFlow()
    policy = Policy.parse(allowed_hosts=("10.0.0.0/8",), allowed_ports=("*",))
    assert allowed_here(cast("Flow", flow), policy, HostPort(host, 443)) is allowed
    assert flow.session.counters.pending("policy_decisions_total", verdict) == 1
    (record,) = caplog.records
    fields = vars(record)["fields"]
    assert (fields["peer"], fields["flow"], fields["verdict"]) == ("office", 7, verdict)
