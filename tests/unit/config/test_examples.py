"""The annotated configurations in etc/: what is commented out there is the default."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.loader import load
from socks_tunnel.config.models import ConfigFile
from socks_tunnel.config.policies import read_policy_file
from socks_tunnel.config.settings import Config, PolicyRules

EXAMPLES = Path(__file__).parents[3] / "etc" / "socks-tunnel"
KEY = "A" * 42 + "E="

SETTING = re.compile(r"^#(\w+ = .*)$", re.MULTILINE)
# Settings that the other role has.
NOT_SHOWN = {
    "gateway": {"udp_filtering", "signaling", "policies", "targets", "join"},
    "endpoint": {"socks", "forwards", "routes"},
}


@pytest.fixture(params=["gateway", "endpoint"])
def role(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load_example(role: str, directory: Path, *, with_comments: bool) -> Config:
    text = (EXAMPLES / f"{role}.toml").read_text()
    text = re.sub('"PUT .* KEY HERE"', f'"{KEY}"', text)
    if with_comments:
        text = re.sub(r"^#policy = .*\n", "", text, flags=re.MULTILINE)  # an example, no default
        for table in ("forwards", "routes"):  # as above
            text = re.sub(rf"^#\[\[{table}\]\]\n(#.*\n)+", "", text, flags=re.MULTILINE)
        for table in ("jwt", "group"):  # as above
            text = re.sub(rf"^#\[join\.{table}\]\n(#.*\n)+", "", text, flags=re.MULTILINE)
        text = text.replace(
            "#[policies.engineering]\n#allowed_hosts", "[policies.e]\n#allowed_hosts"
        )
        text = SETTING.sub(r"\1", text.replace("\n#[policy]\n", "\n[policy]\n"))
    (directory / f"{role}.toml").write_text(text)
    (directory / f"{role}.key").touch(mode=0o600)
    return load(directory / f"{role}.toml")


def test_it_says_what_to_put_in_before_it_can_be_used(role: str, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text((EXAMPLES / f"{role}.toml").read_text())
    (tmp_path / f"{role}.key").touch(mode=0o600)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path / "x.toml")
    [problem] = caught.value.problems
    assert problem.key == "peers[0].public_key"


def test_what_is_commented_out_is_the_default(role: str, tmp_path: Path) -> None:
    minimal = load_example(role, tmp_path, with_comments=False)
    full = load_example(role, tmp_path, with_comments=True)
    if role == "gateway":
        # A [policy] table that allows nothing is not the same as none; its settings are.
        assert full.policy == PolicyRules(None, (), (), (), ())
    full = replace(full, policy=minimal.policy, policies=minimal.policies)
    assert full == minimal


def test_every_setting_is_shown(role: str) -> None:
    text = (EXAMPLES / f"{role}.toml").read_text()
    shown = set(re.findall(r"^#?(\w+) = ", text, flags=re.MULTILINE))
    shown |= set(re.findall(r"^#?\[+(?:\w+\.)?(\w+)", text, flags=re.MULTILINE))
    shown |= set(re.findall(r"^#?\[+(\w+)", text, flags=re.MULTILINE))
    for name in set(ConfigFile.model_fields) - NOT_SHOWN[role]:
        assert name in shown
        model = ConfigFile.model_fields[name].default
        for setting in getattr(type(model), "model_fields", {}):
            assert setting in shown


def test_the_example_policy() -> None:
    rules = read_policy_file(EXAMPLES / "policy.json")
    assert "*.internal.corp" in rules.allowed_hosts
