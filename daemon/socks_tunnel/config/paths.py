"""Where an instance keeps its sockets and metrics while it runs.

In this order: `$RUNTIME_DIRECTORY` (systemd, RuntimeDirectory=), `/run/socks-tunnel/INSTANCE`,
`$XDG_RUNTIME_DIR/socks-tunnel/INSTANCE`, and a private directory for temporary files. The instance
is named after its configuration file: `office` for `/etc/socks-tunnel/office.toml`.
"""

import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

SYSTEM_DIRECTORY: Final = Path("/run/socks-tunnel")
CONTROL_SOCKET: Final = "control.sock"
METRICS: Final = "metrics"

_OF_OTHERS: Final = stat.S_IWGRP | stat.S_IWOTH

TEMPORARY_MAX: Final = 50
"""Longest path in bytes of a directory for temporary files. The paths of the sockets below it must
fit into the 107 bytes of an address (unix(7))."""


def runtime_directory(instance: str, *, create: bool) -> Path:
    """Returns the directory of `instance`.

    With `create`, which is for the supervisor, it is the first place that can be written to. It is
    made (mode 0750) if necessary. Without `create`, which is for commands that look for a running
    instance, it is the first place with a control socket of the instance, or else the first place
    that this user may not read, or else the first place of all.

    Raises :class:`OSError` if no place can be written to, :class:`ValueError` if `instance` is not
    a plain name.
    """
    if not instance or "/" in instance or instance in {".", ".."}:
        raise ValueError(f"{instance!r} cannot name an instance")
    places = list(_places(instance))
    if not create:
        places = [place for place in places if _may_be_asked(place.parent)]
        return min(places, key=lambda place: _RANKS[_has_socket(place)])  # of equal ones, the first
    for place in places[:-1]:
        try:
            _make(place)
        except OSError:
            continue  # it is read-only or belongs to another user, so the next place is tried
        return place
    _make(places[-1])
    return places[-1]


def control_socket(directory: Path) -> Path:
    """Returns the path of the control socket in a runtime directory."""
    return directory / CONTROL_SOCKET


def metrics_directory(directory: Path) -> Path:
    """Returns the directory of the metrics files in a runtime directory."""
    return directory / METRICS


def state_directory(runtime: Path) -> Path:
    """Returns the directory for files that outlive the service: `$STATE_DIRECTORY`, or `runtime`.

    systemd removes a runtime directory when the service stops. Without systemd, it stays.
    """
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(given) if given else runtime


def temporary_directory(prefix: str) -> tempfile.TemporaryDirectory[str]:
    """Makes a private directory for one command. Its path is short enough for sockets below it.

    Raises :class:`OSError`.
    """
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent)) > TEMPORARY_MAX:
        parent = "/tmp"  # noqa: S108 - the directory is private and has an unguessable name
    return tempfile.TemporaryDirectory(prefix=prefix, dir=parent)


def running_instances() -> dict[str, Path]:
    """Returns the existing control sockets in all places, by the name of the instance.

    Those in directories that this user may not read are missing: see
    :func:`hidden_instances`.
    """
    return _instances(hidden=False)


def hidden_instances() -> dict[str, Path]:
    """Returns control sockets that may exist in directories that this user may not read."""
    return _instances(hidden=True)


def _instances(*, hidden: bool) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in filter(_may_be_asked, _roots()):
        try:
            places = sorted(root.iterdir())
        except OSError:
            continue
        for place in places:
            if _has_socket(place) is (None if hidden else True):
                found.setdefault(place.name, control_socket(place))
    return found


_RANKS: Final = {True: 0, None: 1, False: 2}


def _has_socket(place: Path) -> bool | None:
    """Returns whether a directory has a control socket; None if this user may not read it."""
    try:
        control_socket(place).lstat()
    except PermissionError:
        return None
    except OSError:
        return False
    return True


def _roots() -> Iterator[Path]:
    yield SYSTEM_DIRECTORY
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if xdg:
        yield Path(xdg) / "socks-tunnel"
    yield _private_root()


def _private_root() -> Path:
    return Path(tempfile.gettempdir()) / f"socks-tunnel-{os.getuid()}"


def _may_be_asked(root: Path) -> bool:
    """Returns whether what runs below a directory may be asked by a command of this user.

    Everybody can make one where temporary files are, and answer there what they like.
    """
    if root != _private_root():
        return True
    try:
        status = root.lstat()
    except OSError:
        return True  # nothing is there
    ours = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
    return ours and not status.st_mode & _OF_OTHERS


def _places(instance: str) -> Iterator[Path]:
    # systemd separates several directories by colons. The unit has only one.
    given = os.environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    if given:
        yield Path(given)
    for root in _roots():
        yield root / instance


def _make(directory: Path) -> None:
    """Makes `directory` and checks that it is ours. Raises :class:`OSError`."""
    parent = directory.parent
    # In a directory that all may write to, another owner could replace the sockets.
    private = parent.parent.is_dir() and bool(parent.parent.stat().st_mode & stat.S_IWOTH)
    parent.mkdir(mode=0o700 if private else 0o755, exist_ok=True)
    directory.mkdir(mode=0o750, exist_ok=True)
    for made in (parent, directory) if private else (directory,):
        status = made.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid():
            raise PermissionError(f"{made} belongs to another user")
        if private and status.st_mode & _OF_OTHERS:
            raise PermissionError(f"others may write to {made}")
