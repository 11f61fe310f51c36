"""What the command line says of input that is of no use: a sentence and an exit code."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from socks_tunnel.cli import cli
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
    ],
)
def test_a_time_that_does_not_end_is_refused(arguments: tuple[str, ...], seconds: str) -> None:
    result = CliRunner().invoke(cli, (*arguments, seconds))
    assert result.exit_code == 2
    assert "Invalid value for '--timeout'" in result.output
