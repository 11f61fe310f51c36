"""What the command line says of input that is of no use: a sentence and an exit code."""

import pytest
from click.testing import CliRunner

from socks_tunnel.cli import cli
from socks_tunnel.ops import files


@pytest.mark.parametrize(
    "arguments",
    [
        ("check-config", "/dev/zero"),
        ("policy", "test", "--config", "/dev/zero", "example.com", "80"),
        ("pubkey", "/dev/zero"),
    ],
)
def test_a_file_without_an_end_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.setattr(files, "FILE_MAX", 1000)
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 78
    assert "/dev/zero" in result.output
    assert "cannot be read: it is longer than 1000 bytes" in result.output


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
