"""Which policy holds for which peer, and policies in files."""

from pathlib import Path

import pytest

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.models import Config, Peer, PolicyRules
from socks_tunnel.config.policies import read_policy_file
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policies import build_policies, parse_policy
from socks_tunnel.protocol.policy import Policy, PolicyError, Verdict

WEB = HostPort("192.0.2.1", 80)
SSH = HostPort("192.0.2.1", 22)
ANY_HOST = ("0.0.0.0", "::")


def allowed(policy: Policy | None, destination: HostPort) -> bool:
    assert policy is not None
    return policy.check(destination).verdict is Verdict.ALLOWED


def peer(name: str, policy: str | None = None) -> Peer:
    return Peer.model_validate({"name": name, "public_key": "A" * 43 + "=", "policy": policy})


def endpoint(*peers: Peer, policy: PolicyRules | None, **policies: PolicyRules) -> Config:
    return Config(
        role="endpoint",
        source=Path("/etc/socks-tunnel/endpoint.toml"),
        peers=peers,
        policy=policy,
        policies=policies,
    )


def test_an_endpoint_gives_each_peer_its_policy() -> None:
    web = PolicyRules(allowed_hosts=ANY_HOST, allowed_ports=(80,))
    engineering = PolicyRules(allowed_hosts="0.0.0.0", allowed_ports="22\n443")
    config = endpoint(
        peer("laptop"), peer("workstation", "engineering"), policy=web, engineering=engineering
    )

    policies = build_policies(config)

    assert allowed(policies.default, WEB)
    assert allowed(policies.for_peer("laptop"), WEB)
    assert not allowed(policies.for_peer("laptop"), SSH)
    assert allowed(policies.for_peer("workstation"), SSH)
    assert not allowed(policies.for_peer("workstation"), WEB)


def test_an_endpoint_allows_nothing_without_a_policy() -> None:
    policies = build_policies(endpoint(peer("laptop"), policy=None))
    assert not allowed(policies.default, WEB)
    assert not allowed(policies.for_peer("laptop"), WEB)


def test_an_endpoint_allows_nothing_to_a_peer_that_it_does_not_name() -> None:
    everything = PolicyRules(allowed_hosts=ANY_HOST, allowed_ports=("*",))
    policies = build_policies(endpoint(peer("laptop"), policy=everything))
    assert allowed(policies.for_peer("laptop"), WEB)
    assert not allowed(policies.for_peer("stranger"), WEB)


@pytest.mark.parametrize("role_policy", [None, PolicyRules(allowed_hosts=ANY_HOST)])
def test_a_gateway_has_one_policy_or_none(role_policy: PolicyRules | None) -> None:
    config = Config(
        role="gateway", source=Path("/gateway.toml"), peers=(peer("office"),), policy=role_policy
    )
    policies = build_policies(config)
    if role_policy is None:
        assert policies.default is None
    else:
        assert not allowed(policies.default, WEB)  # no port is allowed
    assert policies.for_peer("office") is policies.default


def test_denied_rules_arrive() -> None:
    rules = PolicyRules(
        allowed_hosts=ANY_HOST, allowed_ports="*", denied_hosts=("192.0.2.1",), denied_ports=(25,)
    )
    policy = parse_policy(rules)
    assert policy.check(WEB).rule == "denied_hosts: 192.0.2.1"
    assert policy.check(HostPort("192.0.2.2", 25)).rule == "denied_ports: 25"
    assert allowed(policy, HostPort("192.0.2.2", 26))


def test_all_bad_rules_are_reported() -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(PolicyRules(allowed_hosts=("*",), denied_ports="0"))
    assert [p.field for p in caught.value.problems] == ["allowed_hosts", "denied_ports"]


@pytest.mark.parametrize(
    "text",
    [
        '{"allowed_hosts": "0.0.0.0\\n::", "allowed_ports": "80"}',
        '{"allowed_hosts": ["0.0.0.0", "::"], "allowed_ports": [80]}',
        '{"allowed_hosts": ["0.0.0.0"], "allowed_ports": ["80"], "denied_ports": []}',
    ],
)
def test_the_forms_of_a_policy_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "policy.json"
    file.write_text(text)
    rules = read_policy_file(file)
    assert rules.policy_file == file
    policy = parse_policy(rules)
    assert allowed(policy, WEB)
    assert not allowed(policy, SSH)


def test_a_policy_file_cannot_name_another(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text('{"policy_file": "other.json"}')
    with pytest.raises(ConfigError, match=r'policy_file: unknown key; .* "allowed_hosts"'):
        read_policy_file(file)
