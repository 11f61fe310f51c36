"""Where an instance keeps its sockets."""

import os
import stat
from pathlib import Path

import pytest

from socks_tunnel.config import paths
from socks_tunnel.config.paths import (
    control_socket,
    hidden_instances,
    metrics_directory,
    running_instances,
    runtime_directory,
)


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Move every place that is not the environment's into a directory of the test."""
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(paths, "SYSTEM_DIRECTORY", tmp_path / "run" / "socks-tunnel")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(temporary))
    return tmp_path


def private(places: Path) -> Path:
    return places / "tmp" / f"socks-tunnel-{os.getuid()}"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_systemd_names_the_directory(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = places / "given"
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{given}:{places / 'another'}")
    assert runtime_directory("office", create=True) == given
    assert mode(given) == 0o750


def test_the_system_directory_comes_next(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (places / "run").mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places))
    assert runtime_directory("office", create=True) == places / "run/socks-tunnel/office"
    assert runtime_directory("branch", create=True) == places / "run/socks-tunnel/branch"


def test_then_the_users_own(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places))
    assert runtime_directory("office", create=True) == places / "socks-tunnel/office"


def test_and_last_a_private_one(places: Path) -> None:
    directory = runtime_directory("office", create=True)
    assert directory == private(places) / "office"
    assert mode(private(places)) == 0o700
    assert runtime_directory("office", create=True) == directory


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make a directory of someone else's")
def test_a_private_directory_that_is_someone_elses_is_refused(places: Path) -> None:
    private(places).mkdir()
    os.chown(private(places), 12345, 12345)
    with pytest.raises(PermissionError, match="belongs to another user"):
        runtime_directory("office", create=True)


def test_a_symbolic_link_in_place_of_the_private_directory_is_refused(places: Path) -> None:
    (places / "elsewhere").mkdir()
    private(places).symlink_to(places / "elsewhere")
    with pytest.raises(PermissionError, match="belongs to another user"):
        runtime_directory("office", create=True)


def test_a_private_directory_that_others_may_write_to_is_refused(places: Path) -> None:
    private(places).mkdir()
    private(places).chmod(0o770)
    with pytest.raises(PermissionError, match="others may write to"):
        runtime_directory("office", create=True)


def test_a_command_finds_where_the_instance_runs(
    places: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places))
    assert runtime_directory("office", create=False) == places / "run/socks-tunnel/office"
    assert not (places / "run").exists()

    private(places).mkdir(0o700)
    running = private(places) / "office"
    running.mkdir()
    control_socket(running).touch()
    assert runtime_directory("office", create=False) == running


@pytest.mark.parametrize("how", ["owner", "link", "mode"])
def test_what_another_user_has_put_there_is_no_instance(
    places: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a one could print a token of its own to the administrator who asks for an invitation."""
    made = places / "elsewhere" if how == "link" else private(places)
    made.mkdir(0o700)
    (made / "office").mkdir()
    control_socket(made / "office").touch()
    assert how == "link" or "office" in running_instances()
    if how == "link":
        private(places).symlink_to(made)
    elif how == "mode":
        made.chmod(0o777)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
        made.rename(private(places))
    assert running_instances() == hidden_instances() == {}
    assert not runtime_directory("office", create=False).is_relative_to(places / "tmp")


def test_running_instances(places: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert running_instances() == {}
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(places))
    for place in ("run/socks-tunnel/office", "socks-tunnel/office", "socks-tunnel/branch"):
        (places / place).mkdir(parents=True)
        control_socket(places / place).touch()
    (places / "socks-tunnel/stopped").mkdir()
    assert running_instances() == {
        "office": places / "run/socks-tunnel/office/control.sock",
        "branch": places / "socks-tunnel/branch/control.sock",
    }


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc"])
def test_names_that_would_lead_elsewhere(name: str) -> None:
    with pytest.raises(ValueError, match="cannot name an instance"):
        runtime_directory(name, create=True)


def test_files_in_the_directory() -> None:
    assert control_socket(Path("/run/x")) == Path("/run/x/control.sock")
    assert metrics_directory(Path("/run/x")) == Path("/run/x/metrics")
