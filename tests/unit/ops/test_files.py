"""Files that must outlive a crash: what is left after a failure at each step of a write."""

import ast
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import socks_tunnel
from socks_tunnel.ops.files import rename, replace_whole, sync_directory, write_new
from support.checkout import ROOT

PACKAGES = (
    Path(socks_tunnel.__file__).parent,
    ROOT / "workers/socks_tunnel_workers",
)

RENAMING = {
    "ops/files.py",
    # EnrolmentFile.replace, which uses replace_whole
    "supervisor/group.py",
    # Files of the runtime directory, in memory: they never outlive the machine.
    "ops/meters.py",
}


def renames(source: str) -> bool:
    """Says whether a file is renamed: `os.rename`, or `replace` of one argument, as paths have."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and (
            node.func.attr in {"rename", "renames"}
            or (node.func.attr == "replace" and len(node.args) == 1 and not node.keywords)
            or (node.func.attr == "replace" and ast.unparse(node.func.value) == "os")
        )
        for node in ast.walk(ast.parse(source))
    )


def test_files_are_renamed_in_one_place_only() -> None:
    found = {
        str(path.relative_to(package))
        for package in PACKAGES
        for path in package.rglob("*.py")
        if renames(path.read_text("utf-8"))
    }
    assert found == RENAMING, "use replace_whole or rename of ops/files.py"


class Power:
    """Follows the calls that decide what a crash leaves, and fails at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails_at: int | None = None) -> None:
        self.steps: list[str] = []
        self._fails_at = fails_at
        for name, real in (("fsync", os.fsync), ("replace", os.replace)):
            monkeypatch.setattr(os, name, self._following(name, real))

    def _following(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(first: Any, *rest: Any, **named: Any) -> Any:
            what = name
            if name == "fsync":
                is_directory = stat.S_ISDIR(os.fstat(first).st_mode)
                what = "fsync of the directory" if is_directory else "fsync of the file"
            self.steps.append(what)
            if self._fails_at == len(self.steps):
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(first, *rest, **named)

        return call


def test_content_and_names_are_on_the_disk_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    power = Power(monkeypatch)
    replace_whole(path, b"new")
    assert power.steps == [
        "fsync of the file",
        "fsync of the directory",
        "replace",
        "fsync of the directory",
    ]
    assert path.read_bytes() == b"new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("step", [1, 2, 3])
def test_a_failure_leaves_the_old_file_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    Power(monkeypatch, fails_at=step)
    with pytest.raises(OSError, match="Input/output error"):
        replace_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"], "nothing is left behind"


def test_a_name_that_may_not_be_on_the_disk_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    Power(monkeypatch, fails_at=4)
    with pytest.raises(OSError, match="Input/output error"):
        replace_whole(path, b"new")
    assert path.read_bytes() == b"new", "whole in any case"


def test_what_an_interrupted_attempt_has_left_is_in_nobodys_way(tmp_path: Path) -> None:
    path, aim = tmp_path / "file", tmp_path / "elsewhere"
    aim.write_bytes(b"precious")
    (tmp_path / "file.new").symlink_to(aim)
    replace_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert not path.is_symlink()
    assert aim.read_bytes() == b"precious"


@pytest.mark.parametrize("step", [1, 2])
def test_a_new_file_that_cannot_be_synced_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    Power(monkeypatch, fails_at=step)
    with pytest.raises(OSError, match="Input/output error"):
        write_new(tmp_path / "key", b"secret")
    assert list(tmp_path.iterdir()) == []


def test_a_new_file_takes_nobodys_place(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        write_new(path, b"new")
    assert path.read_bytes() == b"old"


def test_a_rename_is_on_the_disk_when_it_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = tmp_path / "key.new", tmp_path / "key"
    source.write_bytes(b"new")
    power = Power(monkeypatch)
    rename(source, target)
    assert power.steps == ["replace", "fsync of the directory"]
    assert target.read_bytes() == b"new"


def test_a_directory_that_is_not_there_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync_directory(tmp_path / "absent")
