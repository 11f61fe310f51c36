"""What an ordinary user is told of an instance of root's, whose directory is closed to him."""

import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from socks_tunnel.cli import cli
from socks_tunnel.config import paths

NOBODY = 65_534

COMMANDS = (
    ("status",),
    ("status", "--json"),
    ("connections", "--json"),
    ("kill", "1/1"),
    ("drain",),
    ("reload",),
    ("upgrade",),
    ("peers", "--json"),
    ("invite",),
    ("wait", "--timeout", "0"),
)


@contextmanager
def ordinary_user() -> Iterator[None]:
    """Runs as a user whom root's modes hold back; whoever runs the tests as one is one already."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if before == 0:
            os.seteuid(before)


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(cli, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of all instances: `open`, `mine` without a socket, and `hidden`."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for instance in ("hidden", "mine", "open"):
            (root / instance).mkdir()
            (root / instance).chmod(0o755)
        for instance in ("hidden", "open"):
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(root / instance / paths.CONTROL_SOCKET))
        (root / "hidden").chmod(0)
        monkeypatch.setattr(paths, "SYSTEM_DIRECTORY", root)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(root / "none"))
        monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
        try:
            yield root
        finally:
            (root / "hidden").chmod(0o755)


def test_which_instances_there_are(system: Path) -> None:
    with ordinary_user():
        running, hidden = paths.running_instances(), paths.hidden_instances()
    assert running == {"open": system / "open" / paths.CONTROL_SOCKET}
    assert hidden == {"hidden": system / "hidden" / paths.CONTROL_SOCKET}


def test_where_an_instance_is(system: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = system / "own" / "socks-tunnel" / "hidden"
    own.mkdir(parents=True)
    with ordinary_user():
        assert paths.runtime_directory("hidden", create=False) == system / "hidden"
        assert paths.runtime_directory("none", create=False) == system / "none"
    (own / paths.CONTROL_SOCKET).touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(system / "own"))
    with ordinary_user():
        assert paths.runtime_directory("hidden", create=False) == own


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_command_for_an_instance_that_is_closed(system: Path, command: tuple[str, ...]) -> None:
    name, *rest = command
    # What is imported only now may be where this user may not look, too.
    assert call(name, "--instance", "none", *rest).exit_code == 69
    with ordinary_user():
        result = call(name, "--instance", "hidden", *rest)
    assert (result.exit_code, result.stdout) == (69, "")
    socket_path = system / "hidden" / paths.CONTROL_SOCKET
    assert result.stderr.startswith(f"you may not ask the instance on {socket_path}: ")
    assert result.stderr.count("\n") == 1


def test_a_command_that_names_none(system: Path) -> None:
    (system / "open" / paths.CONTROL_SOCKET).unlink()
    assert call("status", "--instance", "none").exit_code == 69
    with ordinary_user():
        result = call("status")
    assert (result.exit_code, result.stdout) == (69, "")
    assert result.stderr == "no instance runs on this host that you may ask; use sudo for: hidden\n"
