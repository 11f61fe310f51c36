"""Commands that cannot work say so at once, and wait for nothing."""

import errno
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from support.processes import SOCKS_TUNNEL

TIMEOUT = 60.0
"""Seconds in which a process starts and ends on a loaded machine."""


def call(
    *arguments: str | Path, before: str = "", after: str = ""
) -> subprocess.CompletedProcess[str]:
    """Runs a command; `before` it stands in the shell's line, and `after` it, what is given here."""
    command = shlex.join(map(str, (SOCKS_TUNNEL, *arguments)))
    return subprocess.run(
        ["bash", "-c", f"{before} exec {command} {after}"],
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


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
@pytest.mark.parametrize(
    ("command", "status"),
    [(("run", "--config", "none"), 78), (("status", "--socket", "none"), 69), (("nc",), 2)],
)
def test_closed_streams(command: tuple[str, ...], status: int, closed: str) -> None:
    """Nobody can be told why, but by the exit status. Nothing is written elsewhere either."""
    done = call(*command, after=closed)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "")


@pytest.mark.parametrize(
    ("command", "status"), [(("status", "--socket", "none"), 69), (("nc",), 73), (("version",), 73)]
)
def test_full_streams(command: tuple[str, ...], status: int) -> None:
    done = call(*command, after=">/dev/full 2>/dev/full")
    assert done.returncode == status


def test_a_configuration_with_mistakes_behind_exec(tmp_path: Path) -> None:
    config = tmp_path / "gateway.toml"
    config.write_text('role = "nothing"\n')
    done = call("exec", "--config", config, "true")
    assert done.returncode == 78
    assert done.stderr == (
        "the instance exited with status 78\n"
        f"{config}:1: role: must be 'gateway' or 'endpoint', not 'nothing'\n"
    )


def test_a_policy_with_mistakes_for_a_demo(tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text('{"allowed_host": "*"}')
    done = call("demo", "--listen", "127.0.0.1:0", "--policy", policy)
    assert done.returncode == 78
    assert f'{policy}: allowed_host: unknown key; the nearest known key is "allowed_hosts"' in (
        done.stderr
    )
    assert "Traceback" not in done.stderr


def test_a_password_from_a_pipe(tmp_path: Path) -> None:
    """Python's own warning names a file of Python's, and there is no echo to warn of."""
    done = call("passwd", "anna", before="printf 'secret\\nsecret\\n' |")
    assert done.returncode == 0
    assert done.stdout.startswith("anna:$scrypt$")
    assert "getpass" not in done.stderr


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (("run", "--config", "c"), "no process can be started that reads c: "),
        (("exec", "--config", "c", "true"), "no instance can be started: "),
        (("demo",), "socks-tunnel demo: the endpoint cannot be started: "),
    ],
)
def test_no_process_can_be_started(command: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    """As where there are too many processes: it is no bug, and may work a minute later."""
    program = (
        "import sys; from socks_tunnel.cli import main; sys.executable = '/dev/null'; "
        f"sys.argv[1:] = {list(command)}; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stdout) == (69, "")
    assert done.stderr == f"{sentence}{os.strerror(errno.EACCES)}\n"


@pytest.mark.parametrize(
    "command",
    [("check-config", "x"), ("pair", "--gateway", "a", "--endpoint", "b", "--url", "unix:s")],
)
def test_a_working_directory_that_is_gone(command: tuple[str, ...], tmp_path: Path) -> None:
    before = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone;"
    done = call(*command, before=before)
    assert done.returncode == 2
    assert done.stderr.startswith("socks-tunnel: the directory in which it was started is not")


def test_a_temporary_directory_whose_name_is_not_utf_8() -> None:
    """A configuration cannot name files below it."""
    with tempfile.TemporaryDirectory(prefix=b"st-\xff", dir=b"/tmp") as directory:
        done = call("demo", "--listen", "127.0.0.1:0", before=f"TMPDIR={os.fsdecode(directory)}")
    assert done.returncode == 73
    assert "is not UTF-8 text, which a configuration has to be" in done.stderr
    assert "Traceback" not in done.stderr
