"""Whether a command can be started is known before anything is waited for, as a shell knows it."""

from pathlib import Path

import pytest

from socks_tunnel.client.command import CommandError, check


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    for name, mode in (("runs", 0o755), ("plain", 0o644)):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    (tmp_path / "directory").mkdir()
    return {"PATH": f"/nowhere:{tmp_path}"}


@pytest.mark.parametrize("absolute", [False, True])
def test_a_program_that_can_be_started(
    environment: dict[str, str], tmp_path: Path, *, absolute: bool
) -> None:
    check(str(tmp_path / "runs") if absolute else "runs", environment)


@pytest.mark.parametrize(
    ("name", "exit_code", "reason"),
    [
        ("nosuchcmd", 127, "No such file or directory"),
        ("", 127, "No such file or directory"),
        ("./runs", 127, "No such file or directory"),  # not where the test runs
        ("plain", 126, "Permission denied"),
        ("directory", 126, "Permission denied"),
    ],
)
def test_a_program_that_cannot_be_started(
    environment: dict[str, str], name: str, exit_code: int, reason: str
) -> None:
    with pytest.raises(CommandError) as caught:
        check(name, environment)
    assert (str(caught.value), caught.value.exit_code) == (f"{name}: {reason}", exit_code)
