"""Starts the systemd unit of an instance that a command has just configured."""

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any, Final

from socks_tunnel.cli.asking import CONFIGURATIONS
from socks_tunnel.cli.frame import Failure, Unavailable
from socks_tunnel.config import paths
from socks_tunnel.supervisor import control_client

START_TIMEOUT: Final = 60.0
"""Seconds to wait for systemd, and then again for the instance."""

_PAUSE: Final = 0.1
"""Seconds between two looks for the control socket."""


def unit_of(config: Path) -> str | None:
    """Returns the unit that runs a configuration, or None if it is not where units look for one."""
    return f"socks-tunnel@{config.stem}" if config.parent == CONFIGURATIONS else None


def why_not_started(config: Path) -> str | None:
    """Returns why the unit of a configuration cannot be started; None if it can be."""
    if unit_of(config) is None:
        return f"units run configurations in {CONFIGURATIONS} only"
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").exists():
        return "systemd does not run on this host"
    return None


def start(config: Path) -> None:
    """Enables and starts the unit of a configuration, and waits until it says that it is ready.

    Raises :class:`Failure` with what systemd says.
    """
    unit = unit_of(config)
    assert unit is not None, "why_not_started has been asked"
    try:
        ended = subprocess.run(  # noqa: S603 - no shell, and the name is that of a file
            ["systemctl", "enable", "--now", "--quiet", unit],  # noqa: S607 - it is on the PATH
            capture_output=True,
            text=True,
            timeout=START_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{unit} has not started within {START_TIMEOUT:g} s") from None
    if ended.returncode:
        raise Failure(f"{unit} does not start: {ended.stderr.strip()}\njournalctl -u {unit}")


def ask_when_it_runs(config: Path, fields: dict[str, Any]) -> Any:
    """Returns the answer of an instance that was started just now.

    Raises :class:`Unavailable` if it does not answer in time, :class:`Failure` if it refuses.
    """
    socket = paths.control_socket(paths.runtime_directory(config.stem, create=False))
    end = time.monotonic() + START_TIMEOUT
    while True:
        try:
            answer = control_client.request(socket, fields)
        except OSError as error:
            if time.monotonic() >= end:
                raise Unavailable(f"{unit_of(config)} does not answer: {error}") from None
            time.sleep(_PAUSE)
            continue
        if not answer.get("ok"):
            raise Failure(f"refused: {answer.get('error', 'no reason given')}")
        return answer["result"]
