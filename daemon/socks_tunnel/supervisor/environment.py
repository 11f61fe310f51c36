"""Environment variables between an instance, its parent and its children."""

from typing import Final

PARENT_VARIABLE: Final = "SOCKS_TUNNEL_PARENT"
"""Holds the process id of a parent that an instance must not outlive; `demo` and `exec` set it."""

# Children must not get the variables that are for the main process alone. A child could otherwise
# speak to the service manager in its name, or use its sockets.
OWN_ENVIRONMENT: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
)
