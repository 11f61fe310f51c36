"""The command `upgrade`: replaces the running program by the installed one, without lost flows."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from socks_tunnel.cli.asking import no_answer, of_instance, path_of
from socks_tunnel.cli.frame import Failure, Unavailable
from socks_tunnel.client.progress import Progress
from socks_tunnel.supervisor import control_client

CHECK_TIMEOUT: Final = 90.0
"""Seconds to wait for the answer. The installed program has a minute to say that it can start."""

COME_UP_TIMEOUT: Final = 120.0
"""Seconds within which the new program must answer."""

RESUMED_TIMEOUT: Final = 20.0
"""Seconds to wait for flows to go on. They may take longer if the peer cannot be reached."""

POLL: Final = 0.1
"""Seconds between two questions."""


@click.command()
@of_instance
def upgrade(instance: str | None, socket_path: Path | None) -> None:
    """Replace the running program by the installed one; its flows go on.

    In a terminal, a line says how far it is.

    Exit code 1: the installed program cannot take over, and the running one goes on. Exit code 69:
    the running version cannot do this, or the new one does not answer; restart the service.
    """
    path = path_of(instance, socket_path)
    # A script gets only the final sentence. The progress line is for a person at a terminal.
    progress = Progress(sys.stderr) if sys.stderr.isatty() else None
    show = _unseen if progress is None else progress.show
    show("the installed program is asked whether it can take over")
    try:
        sentence = _replace(path, show)
    finally:
        if progress is not None:
            progress.clear()
    click.echo(sentence)


def _unseen(line: str) -> None:
    """Shows no line."""
    del line


def _replace(path: Path, show: Callable[[str], None]) -> str:
    """Has the program replaced, and returns the final sentence.

    `show` is called with the progress.
    """
    begun = _ask(path, {"op": "upgrade"}, CHECK_TIMEOUT)
    if not begun.get("ok"):
        complaint = str(begun.get("error", "no reason given"))
        if complaint.startswith(("there is no request", "the instance is starting")):
            raise Unavailable(f"it cannot be replaced in place, restart it: {complaint}")
        raise Failure(f"refused: {complaint}")
    before = begun["result"]
    began = time.monotonic()

    def waiting() -> None:
        seconds = time.monotonic() - began
        show(f"version {before['to']} takes the place of {before['from']}, since {seconds:.0f} s")

    found = _wait(path, before["upgrades"] + 1, began + COME_UP_TIMEOUT, waiting)
    if found is None:
        raise Unavailable(f"version {before['to']} does not answer: the journal says why")
    deadline = time.monotonic() + RESUMED_TIMEOUT

    def resuming() -> None:
        left = max(deadline - time.monotonic(), 0)
        show(f"version {before['to']} runs; its flows are being resumed, for another {left:.0f} s")

    while found["resumed_after"] is None and time.monotonic() < deadline:
        resuming()
        time.sleep(POLL)
        found = _wait(path, before["upgrades"] + 1, deadline, resuming) or found
    return _sentence(found)


def _sentence(found: dict[str, Any]) -> str:
    replaced = f"version {found['to']} has taken the place of {found['from']}"
    after = found["resumed_after"]
    if after is None:
        return f"{replaced} within {found['seconds']:.1f} s; {found['flows']} flows wait for a link"
    return f"{replaced}; {found['flows']} flows went on after {after:.1f} s"


def _wait(
    path: Path, upgrades: int, deadline: float, waiting: Callable[[], None]
) -> dict[str, Any] | None:
    """Returns the new program's answer about the replacement, or None if it did not answer in time.

    `waiting` is called before each question.
    """
    while True:
        waiting()
        left = deadline - time.monotonic()
        try:
            answer = control_client.request(path, {"op": "status"}, timeout=max(left, 1.0))
        except OSError:  # the old program has just ended, and its connection with it
            answer = {}
        result = answer.get("result") or {}
        if result.get("state") == "ready" and result.get("upgrades", -1) >= upgrades:
            found = result.get("upgrade")
            if isinstance(found, dict):
                return found
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL)


def _ask(path: Path, fields: dict[str, Any], timeout: float) -> dict[str, Any]:
    try:
        return control_client.request(path, fields, timeout=timeout)
    except OSError as error:
        raise no_answer(path, error) from None
