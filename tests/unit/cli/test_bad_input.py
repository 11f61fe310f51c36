"""What the command line says of input that is of no use: a sentence and an exit code."""

import errno
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from socks_tunnel.cli import cli, scripting
from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.rendezvous import load_rendezvous

READERS = [
    ("check-config",),
    ("policy", "test", "example.com", "80", "--config"),
    ("route", "test", "example.com", "80", "--config"),
    ("pubkey",),
]
"""Commands whose last argument is a file that they read."""


def call(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


@pytest.fixture(params=["FIFO", "directory", "device"])
def unusual(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, str]:
    """Something that is not a regular file, and what it is called."""
    path = tmp_path / "unusual"
    match request.param:
        case "FIFO":
            os.mkfifo(path, 0o600)
            return str(path), "it is a FIFO or a pipe, and not a regular file"
        case "directory":
            path.mkdir()
            return str(path), "it is a directory, and not a regular file"
        case _:
            return "/dev/zero", "it is a character device, and not a regular file"


@pytest.mark.parametrize("command", READERS)
def test_what_is_no_regular_file_is_refused(
    command: tuple[str, ...], unusual: tuple[str, str]
) -> None:
    path, reason = unusual
    result = call(*command, path)
    assert result.exit_code == 78
    assert f"cannot be read: {reason}" in result.output
    assert path in result.output


def test_a_service_refuses_it_too(unusual: tuple[str, str]) -> None:
    path, reason = unusual
    with pytest.raises(ConfigError, match=f"cannot be read: {reason}"):
        load_rendezvous(Path(path))


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ("wait", "--timeout"),
        ("drain", "--timeout"),
        ("join", "http://127.0.0.1:9/", "--token", "st1_", "--timeout"),
        ("diagnose", "--timeout"),
        ("exec", "true", "--timeout"),
        ("nc", "example.com", "80", "--timeout"),
    ],
)
def test_a_time_that_does_not_end_is_refused(arguments: tuple[str, ...], seconds: str) -> None:
    result = CliRunner().invoke(cli, (*arguments, seconds))
    assert result.exit_code == 2
    assert "Invalid value for '--timeout'" in result.output


@pytest.mark.parametrize("digits", ["9" * 5000, "9_" * 5000 + "9"])
@pytest.mark.parametrize("command", READERS[:3])
def test_a_number_that_python_does_not_read(
    command: tuple[str, ...], digits: str, tmp_path: Path
) -> None:
    """Beyond 4,300 digits its parsers raise another exception than for text that is not valid."""
    path = tmp_path / "gateway.toml"
    path.write_text(f'role = "gateway"\n\n\ndrain_timeout = {digits}\n')
    result = call(*command, str(path))
    assert result.exit_code == 78
    assert result.output == f"{path}:4: has a number with too many digits\n"


def test_a_policy_file_with_such_a_number(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{\n"allowed_ports": ' + "9" * 5000 + "}")
    path = tmp_path / "endpoint.toml"
    path.write_text('role = "endpoint"\npolicy_file = "policy.json"\n')
    result = call("check-config", str(path))
    assert result.exit_code == 78
    assert f"{policy}:2: has a number with too many digits\n" in result.output


def test_a_file_in_the_place_of_a_directory(tmp_path: Path) -> None:
    """It is not said to be a key that is there already."""
    file = tmp_path / "laptop"
    file.touch()
    url = "http://office.example.com:8765/"
    result = call("pair", "--gateway", str(file), "--endpoint", str(tmp_path), "--url", url)
    assert result.exit_code == 73
    assert result.output == f"{file / 'gateway.toml'}: Not a directory\n"


def test_configurations_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HOME may be another user's, as with sudo."""
    (tmp_path / "mine.toml").write_text('role = "gateway"\n')
    glob = Path.glob

    def refused(self: Path, pattern: str) -> Iterator[Path]:
        if self == tmp_path / "others/socks-tunnel":
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        yield from glob(self, pattern)

    monkeypatch.setattr(Path, "glob", refused)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "others"))
    monkeypatch.setattr(scripting, "CONFIGURATIONS", tmp_path)
    assert scripting.only_configuration() == tmp_path / "mine.toml"


@pytest.mark.parametrize("name", ["\U0001f600", "\x7f", 'a"b\\c', "\u00fc"])
def test_unusual_characters_get_into_a_configuration(name: str, tmp_path: Path) -> None:
    """TOML knows neither a bare DEL nor two escapes for one character, which JSON has."""
    config, ca = tmp_path / "endpoint.toml", tmp_path / f"{name}.pem"
    result = call(
        *("setup", "wss://rendezvous.example.net/", "--allow", "10.77.0.0/16", "--no-start"),
        *("--config", str(config), "--tls-ca", str(ca)),
    )
    assert result.exit_code == 0, result.output
    assert tomllib.loads(config.read_text("utf-8"))["signaling"]["tls_ca"] == str(ca)


def test_what_is_not_utf_8_does_not(tmp_path: Path) -> None:
    config, ca = tmp_path / "endpoint.toml", tmp_path / "\udcff.pem"
    result = call(
        *("setup", "wss://rendezvous.example.net/", "--allow", "10.77.0.0/16", "--no-start"),
        *("--config", str(config), "--tls-ca", str(ca)),
    )
    assert result.exit_code == 2
    assert "is not UTF-8 text, which a configuration has to be" in result.output
    assert not config.exists()


def test_neither_does_it_from_pair(tmp_path: Path) -> None:
    here = ("--gateway", str(tmp_path / "g"), "--endpoint", str(tmp_path / "e"))
    result = call("pair", *here, "--url", "unix:/run/\udcff")
    assert result.exit_code == 2
    assert "is not UTF-8 text, which a configuration has to be" in result.output
    assert not list(tmp_path.iterdir())


def test_a_password_that_is_not_utf_8() -> None:
    result = call("passwd", "anna", "--password", "\udcff")
    assert result.exit_code == 2
    assert "Error: a password is UTF-8 text" in result.output
