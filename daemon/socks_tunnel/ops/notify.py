"""What the supervisor tells systemd: sd_notify(3), Type=notify-reload, WatchdogSec=."""

import logging
import os
import socket
import time
from collections.abc import Mapping

import sdnotify

_log = logging.getLogger(__name__)

SEND_TIMEOUT = 1.0
"""Seconds for which one notification may delay the caller. systemd reads its socket at once unless
it is itself in trouble, and then the tunnel must go on."""


class _NotifySocket(sdnotify.SystemdNotifier):  # type: ignore[misc]  # it has no type hints
    """The library's notifier, with a given socket path and a time-out."""

    def __init__(self, address: str) -> None:
        self.debug = True  # `notify` raises OSError; without it, every error is swallowed
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.socket.settimeout(SEND_TIMEOUT)
        try:
            # A leading @ stands for the abstract socket namespace (unix(7)).
            self.socket.connect("\0" + address[1:] if address.startswith("@") else address)
        except OSError:
            self.socket.close()
            raise


class Notifier:
    """The connection to the service manager; without one, every call does nothing.

    `environ` is the process environment: NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID. A service
    manager that does not take a message is logged and never an error to the caller.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._socket: _NotifySocket | None = None
        address = environ.get("NOTIFY_SOCKET")
        if address:
            try:
                self._socket = _NotifySocket(address)
            except OSError as error:
                _log.warning("the service manager's socket %s is of no use: %s", address, error)
        self._watchdog_interval = _watchdog_interval(environ) if self._socket else None

    @property
    def watchdog_interval(self) -> float | None:
        """Seconds between two calls of :meth:`watchdog`; None if there is no watchdog.

        It is half of what systemd allows, as sd_watchdog_enabled(3) recommends.
        """
        return self._watchdog_interval

    def ready(self, status: str) -> None:
        """Says that start-up, or a reload, is complete."""
        self._send(f"READY=1\nSTATUS={_one_line(status)}")

    def status(self, text: str) -> None:
        """Sets the sentence that `systemctl status` shows."""
        self._send(f"STATUS={_one_line(text)}", wait=False)

    def reloading(self) -> None:
        """Says that a reload begins; :meth:`ready` ends it.

        Type=notify-reload wants the time with it, on CLOCK_MONOTONIC, to tell this message from
        one that was sent before the reload was asked for (sd_notify(3)).
        """
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """Says that shutdown begins."""
        self._send("STOPPING=1")

    def extend(self, seconds: float) -> None:
        """Asks for more time: the next such message may come up to so many seconds later.

        It moves TimeoutStopSec=, and other time limits of the state that the unit is in, only to
        later (EXTEND_TIMEOUT_USEC= in sd_notify(3)).
        """
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}", wait=False)

    def watchdog(self) -> None:
        """Says that the event loop is alive. Call it from the event loop itself."""
        self._send("WATCHDOG=1", wait=False)

    def close(self) -> None:
        """Closes the socket; later calls do nothing."""
        if self._socket is not None:
            self._socket.socket.close()
            self._socket = None

    def _send(self, state: str, *, wait: bool = True) -> None:
        """Sends a message. One that the next will soon replace does not wait for room."""
        if self._socket is None:
            return
        try:
            self._socket.socket.settimeout(SEND_TIMEOUT if wait else 0.0)
            self._socket.notify(state)
        except OSError as error:
            _log.warning("the service manager did not take %r: %s", state, error)


def _one_line(text: str) -> str:
    # A newline would start another assignment, and the library encodes as Latin-1.
    return " ".join(text.split()).encode("ascii", "replace").decode("ascii")


def _watchdog_interval(environ: Mapping[str, str]) -> float | None:
    usec = environ.get("WATCHDOG_USEC", "")
    if not usec.isdecimal() or int(usec) == 0:
        return None
    # WATCHDOG_PID is absent when the variable was set by hand; another pid means that it was
    # meant for the process that started us.
    pid = environ.get("WATCHDOG_PID")
    if pid is not None and pid != str(os.getpid()):
        return None
    return int(usec) / 2 / 1_000_000
