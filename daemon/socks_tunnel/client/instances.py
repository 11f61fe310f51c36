"""Finds out whether an instance runs here and can serve, for `wait`, `exec` and `nc`."""

import errno
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from socks_tunnel.supervisor import control_client

POLL: Final = 0.1
"""Seconds between two questions while waiting for a state."""

ASK_TIMEOUT: Final = 10.0
"""Seconds for one question."""


class InstanceError(Exception):
    """The instance cannot be used. The text is a sentence."""


def summary(path: Path) -> dict[str, Any]:
    """Returns an instance's answer to `summary`.

    Raises :class:`OSError` if none answers on the control socket `path`, and :class:`InstanceError`
    if it refuses, as an older version does.
    """
    answer = control_client.request(path, {"op": "summary"}, timeout=ASK_TIMEOUT)
    result = answer.get("result")
    if not answer.get("ok") or not isinstance(result, dict):
        raise InstanceError(f"the instance refuses: {answer.get('error', 'it gives no reason')}")
    return result


def wait_for_link(find: Callable[[], Path | None], timeout: float) -> dict[str, Any]:
    """Waits until an instance runs and has a link; returns its summary.

    `find` returns its control socket, or None while there is none. Raises :class:`InstanceError`
    with what is missing after `timeout` seconds; it asks at least once. Also raises it at once if
    this user may not ask the instance.
    """
    until = time.monotonic() + timeout
    while True:
        path, missing = find(), "no instance runs on this host"
        if path is not None:
            try:
                found = summary(path)
            except PermissionError:
                raise InstanceError(may_not_ask(path)) from None
            except OSError as error:
                missing = f"no instance answers on {path}: {error.strerror or error}"
            else:
                if found["state"] == "ready" and found["links_up"]:
                    return found
                missing = why_no_link(found)
        left = until - time.monotonic()
        if left <= 0:
            raise InstanceError(f"{missing} (waited {timeout:g} s)")
        time.sleep(min(POLL, left))


def may_not_ask(path: Path) -> str:
    """Returns the sentence for a user who may not use the control socket of an instance."""
    return (
        f"you may not ask the instance on {path}: its socket is for the user and group of the "
        "daemon; use sudo, or become a member of that group"
    )


def why_no_link(found: Mapping[str, Any]) -> str:
    """Returns a sentence that says why an instance has no link."""
    if found["state"] != "ready":
        return f"{found['instance']} is {found['state']}"
    details = "; ".join(found["details"])
    return f"{found['instance']} has no link" + (f": {details}" if details else "")


def is_gone(error: OSError) -> bool:
    """Returns whether an error of :func:`summary` means that no process has the control socket."""
    return error.errno in {errno.ENOENT, errno.ECONNREFUSED, errno.ECONNRESET, errno.EPROTO}
