"""`setup`: a fresh host becomes an endpoint."""

import stat
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from socks_tunnel import cli
from socks_tunnel.cli import starting
from socks_tunnel.config.loader import load
from socks_tunnel.signaling.identity import PrivateIdentity

URL = "wss://rendezvous.example.net/"


def setup(directory: Path, *arguments: str) -> Result:
    config = ["--config", str(directory / "endpoint.toml"), "--no-start"]
    return CliRunner().invoke(cli.cli, ["setup", *arguments, *config])


def test_the_files_work_together_and_the_key_is_private(tmp_path: Path) -> None:
    result = setup(tmp_path, URL, "--allow", "10.77.0.0/16", "--allow", "*.internal.corp")
    assert result.exit_code == 0, result.output
    config = load(tmp_path / "endpoint.toml")
    assert config.role == "endpoint"
    assert config.signaling is not None
    assert config.signaling.rendezvous == URL
    assert config.signaling.listen is None, "no open port"
    assert config.policy is not None
    assert config.policy.allowed_hosts == ("10.77.0.0/16", "*.internal.corp")
    assert config.policy.allowed_ports == (22, 53, 80, 443)
    key = tmp_path / "endpoint.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert PrivateIdentity.load(key).public_text in result.output


def test_other_ports_and_an_authority(tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"
    more = ["--port", "8000-8100", "--port", "22", "--tls-ca", str(ca)]
    assert setup(tmp_path, URL, "--allow", "0.0.0.0", *more).exit_code == 0
    text = (tmp_path / "endpoint.toml").read_text()
    assert 'allowed_ports = ["8000-8100", 22]' in text
    assert f'tls_ca = "{ca}"' in text


def test_on_loopback_both_ends_are_on_one_host(tmp_path: Path) -> None:
    assert setup(tmp_path, "ws://localhost:8443/", "--allow", "10.0.0.0/8").exit_code == 0
    assert load(tmp_path / "endpoint.toml").ice.addresses == ("127.0.0.1",)


def test_a_key_that_is_there_is_used_and_a_configuration_never_overwritten(tmp_path: Path) -> None:
    key = tmp_path / "endpoint.key"
    key.touch(mode=0o600)
    identity = PrivateIdentity.generate()
    key.write_bytes(identity.to_pem())
    result = setup(tmp_path, URL, "--allow", "10.0.0.0/8")
    assert identity.public_text in result.output
    before = (tmp_path / "endpoint.toml").read_text()
    again = setup(tmp_path, URL, "--allow", "10.1.0.0/16")
    assert again.exit_code == 73
    assert "is there already" in again.output
    assert (tmp_path / "endpoint.toml").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("https://rendezvous.example.net/", "--allow", "10.0.0.0/8"), "is neither wss://"),
        ((URL, "--allow", "10.0.0/8"), "'10.0.0/8'"),
        ((URL, "--allow", "10.0.0.0/8", "--port", "http"), "'http'"),
        ((URL,), "--allow"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(
    tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    result = setup(tmp_path, *arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert not list(tmp_path.iterdir())


def test_units_run_what_is_in_their_directory_only(tmp_path: Path) -> None:
    assert starting.unit_of(Path("/etc/socks-tunnel/office.toml")) == "socks-tunnel@office"
    assert starting.unit_of(tmp_path / "office.toml") is None
    assert "in /etc/socks-tunnel only" in str(starting.why_not_started(tmp_path / "office.toml"))
    config = ["--config", str(tmp_path / "endpoint.toml")]
    result = CliRunner().invoke(cli.cli, ["setup", URL, "--allow", "10.0.0.0/8", *config])
    assert result.exit_code == 2
    assert "use --no-start" in result.output
    assert not list(tmp_path.iterdir())
