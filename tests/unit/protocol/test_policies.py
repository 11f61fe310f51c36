"""Which policy holds for which peer."""

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policies import build_policies, parse_policy
from socks_tunnel.protocol.policy import Policy, PolicyError, Verdict
from socks_tunnel.protocol.settings import PeerSettings, RuleSettings, WorkerSettings

WEB = HostPort("192.0.2.1", 80)
SSH = HostPort("192.0.2.1", 22)
ANY_HOST = ("0.0.0.0", "::")


def allowed(policy: Policy | None, destination: HostPort) -> bool:
    assert policy is not None
    return policy.check(destination).verdict is Verdict.ALLOWED


def endpoint(
    *peers: PeerSettings, policy: RuleSettings | None, **policies: RuleSettings
) -> WorkerSettings:
    return WorkerSettings("endpoint", peers=peers, policy=policy, policies=policies)


def test_an_endpoint_gives_each_peer_its_policy() -> None:
    web = RuleSettings(allowed_hosts=ANY_HOST, allowed_ports=(80,))
    engineering = RuleSettings(allowed_hosts="0.0.0.0", allowed_ports="22\n443")
    config = endpoint(
        PeerSettings("laptop"),
        PeerSettings("workstation", "engineering"),
        policy=web,
        engineering=engineering,
    )

    policies = build_policies(config)

    assert allowed(policies.default, WEB)
    assert allowed(policies.for_peer("laptop"), WEB)
    assert not allowed(policies.for_peer("laptop"), SSH)
    assert allowed(policies.for_peer("workstation"), SSH)
    assert not allowed(policies.for_peer("workstation"), WEB)


def test_an_endpoint_allows_nothing_without_a_policy() -> None:
    policies = build_policies(endpoint(PeerSettings("laptop"), policy=None))
    assert not allowed(policies.default, WEB)
    assert not allowed(policies.for_peer("laptop"), WEB)


def test_an_endpoint_allows_nothing_to_a_peer_that_it_does_not_name() -> None:
    everything = RuleSettings(allowed_hosts=ANY_HOST, allowed_ports=("*",))
    policies = build_policies(endpoint(PeerSettings("laptop"), policy=everything))
    assert allowed(policies.for_peer("laptop"), WEB)
    assert not allowed(policies.for_peer("stranger"), WEB)


@pytest.mark.parametrize("role_policy", [None, RuleSettings(allowed_hosts=ANY_HOST)])
def test_a_gateway_has_one_policy_or_none(role_policy: RuleSettings | None) -> None:
    config = WorkerSettings("gateway", peers=(PeerSettings("office"),), policy=role_policy)
    policies = build_policies(config)
    if role_policy is None:
        assert policies.default is None
    else:
        assert not allowed(policies.default, WEB)  # no port is allowed
    assert policies.for_peer("office") is policies.default


def test_denied_rules_arrive() -> None:
    rules = RuleSettings(
        allowed_hosts=ANY_HOST, allowed_ports="*", denied_hosts=("192.0.2.1",), denied_ports=(25,)
    )
    policy = parse_policy(rules)
    assert policy.check(WEB).rule == "denied_hosts: 192.0.2.1"
    assert policy.check(HostPort("192.0.2.2", 25)).rule == "denied_ports: 25"
    assert allowed(policy, HostPort("192.0.2.2", 26))


def test_all_bad_rules_are_reported() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(RuleSettings(allowed_hosts=("*",), denied_ports="0"))
    assert [p.field for p in caught.value.problems] == ["allowed_hosts", "denied_ports"]
