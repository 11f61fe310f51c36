"""Policies in files."""

from pathlib import Path

import pytest

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.policies import read_policy_file
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policies import parse_policy
from socks_tunnel.protocol.policy import Policy, Verdict

WEB = HostPort("192.0.2.1", 80)
SSH = HostPort("192.0.2.1", 22)


def allowed(policy: Policy, destination: HostPort) -> bool:
    return policy.check(destination).verdict is Verdict.ALLOWED


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
