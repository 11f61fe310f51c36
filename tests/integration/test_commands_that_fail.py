"""Commands that cannot work say so at once, and wait for nothing."""

import os
import subprocess
from pathlib import Path

import pytest

from support.processes import SOCKS_TUNNEL

TIMEOUT = 60.0
"""Seconds in which a process starts and ends on a loaded machine."""


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [SOCKS_TUNNEL, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize("command", ["run", "rendezvous"])
def test_a_configuration_that_is_a_fifo(tmp_path: Path, command: str) -> None:
    os.mkfifo(tmp_path / "gateway.toml")
    done = call(command, "--config", tmp_path / "gateway.toml")
    assert done.returncode == 78
    assert "cannot be read: it is a FIFO or a pipe, and not a regular file" in done.stderr


def test_a_command_that_is_not_there_is_not_run_behind_a_link(tmp_path: Path) -> None:
    """No gateway could be started from this file, so nothing has been waited for."""
    config = tmp_path / "gateway.toml"
    done = call("exec", "--config", config, "--timeout", "3600", "--", "nosuchcmd")
    assert (done.returncode, done.stdout) == (127, "")
    assert done.stderr == "socks-tunnel exec: nosuchcmd: No such file or directory\n"
