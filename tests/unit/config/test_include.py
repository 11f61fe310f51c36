"""Drop-in files: what `include` adds, and mistakes with the file and line where they stand."""

from pathlib import Path

import pytest

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.loader import load
from socks_tunnel.config.settings import Config
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policies import build_policies
from socks_tunnel.protocol.policy import Verdict

MAIN = """\
role = "endpoint"
include = ["peers.d/*.toml", "policy.d/*.toml"]
identity.private_key_file = "x.key"
signaling.listen = "127.0.0.1:8765"
"""


def key(number: int) -> str:
    return "A" * 41 + chr(ord("A") + number) + "A="


def peer(number: int, more: str = "") -> str:
    return f'[[peers]]\nname = "laptop-{number}"\npublic_key = "{key(number)}"\n{more}\n'


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "x.key").touch(mode=0o600)
    for name in ("peers.d", "policy.d"):
        (tmp_path / name).mkdir()
    return tmp_path


def load_main(directory: Path, text: str = MAIN) -> Config:
    (directory / "office.toml").write_text(text)
    return load(directory / "office.toml")


def mistakes(directory: Path, text: str = MAIN) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_main(directory, text)
    return [line.replace(f"{directory}/", "") for line in str(caught.value).splitlines()]


def test_peers_and_policies_are_added_in_the_order_of_names(directory: Path) -> None:
    (directory / "peers.d/20.toml").write_text(peer(2) + peer(3, 'policy = "ops"'))
    (directory / "peers.d/10.toml").write_text(peer(1))
    (directory / "peers.d/README").write_text("not TOML, and not asked for")
    (directory / "policy.d/ops.toml").write_text(
        '[policies.ops]\nallowed_hosts = "0.0.0.0"\nallowed_ports = [22]\n'
    )
    config = load_main(directory, MAIN + peer(0))
    assert [p.name for p in config.peers] == [f"laptop-{n}" for n in range(4)]
    policies = build_policies(config)
    ops = policies.for_peer("laptop-3")
    assert ops is not None
    assert ops.check(HostPort("10.0.0.1", 22)).verdict is Verdict.ALLOWED


def test_rules_are_added_to_those_there_are_in_either_form(directory: Path) -> None:
    (directory / "peers.d/1.toml").write_text(peer(1))
    (directory / "policy.d/a.toml").write_text('[policy]\nallowed_hosts = ["10.1.0.0/16"]\n')
    (directory / "policy.d/b.toml").write_text(
        '[policy]\nallowed_hosts = "10.2.0.0/16\\n10.3.0.0/16"\nallowed_ports = [443]\n'
    )
    config = load_main(
        directory, MAIN + '[policy]\nallowed_hosts = "10.0.0.0/16"\nallowed_ports = [80]\n'
    )
    assert config.policy is not None
    assert config.policy.allowed_hosts == (
        "10.0.0.0/16",
        "10.1.0.0/16",
        "10.2.0.0/16",
        "10.3.0.0/16",
    )
    assert config.policy.allowed_ports == (80, 443)


def test_nothing_need_be_there(directory: Path) -> None:
    assert load_main(directory, MAIN + peer(0)).include == ("peers.d/*.toml", "policy.d/*.toml")
    (directory / "peers.d").rmdir()
    assert len(load_main(directory, MAIN + peer(0)).peers) == 1


def test_an_absolute_pattern(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "p.toml").write_text(peer(1))
    text = MAIN.replace("peers.d/*", f"{elsewhere}/p")
    assert [p.name for p in load_main(directory, text).peers] == ["laptop-1"]


def test_mistakes_stand_where_they_were_made(directory: Path) -> None:
    (directory / "peers.d/1.toml").write_text("\n" + peer(1, 'polcy = "x"'))
    (directory / "peers.d/2.toml").write_text(peer(0))
    (directory / "policy.d/1.toml").write_text(
        '[policy]\nallowed_ports = [80]\nallowed_hosts = [\n"10.0.0.0/16",\n"10.0.0.0/99"]\n'
    )
    peers, name, public_key, rule = mistakes(directory, MAIN + peer(0))
    assert peers.startswith("peers.d/1.toml:5: peers[1].polcy: unknown key; the nearest known key")
    assert name == "peers.d/2.toml:2: peers[2].name: is the same as that of peers[0]"
    assert public_key == "peers.d/2.toml:3: peers[2].public_key: is the same as that of peers[0]"
    assert rule.startswith("policy.d/1.toml:5: policy.allowed_hosts[1]: '10.0.0.0/99': ")


def test_what_an_included_file_cannot_hold(directory: Path) -> None:
    (directory / "peers.d/1.toml").write_text('role = "gateway"\npeers = 3\n')
    (directory / "peers.d/2.toml").write_text("[[peers]\n")
    (directory / "policy.d/1.toml").write_text('[policy]\npolicy_file = "x.json"\n[policies.a]\n')
    (directory / "policy.d/2.toml").write_text("[policies.a]\n")
    found = mistakes(directory, MAIN + peer(0))
    assert [line.split(": ", 2)[:2] for line in found] == [
        ["peers.d/1.toml:1", "role"],
        ["peers.d/1.toml:2", "peers"],
        ["peers.d/2.toml:1", "is not valid TOML"],
        ["policy.d/1.toml:2", "policy.policy_file"],
        ["policy.d/2.toml:1", "policies.a"],
    ]
    assert "is there already" in found[-1]


@pytest.mark.parametrize("value", ["1", '[1, "peers.d/*.toml"]'])
def test_patterns_that_are_none(directory: Path, value: str) -> None:
    text = MAIN.replace('["peers.d/*.toml", "policy.d/*.toml"]', value) + peer(0)
    (found,) = mistakes(directory, text)
    assert found.startswith("office.toml:2: include")
