"""Environment variables between an instance, its parent and its children."""

from typing import Final

PARENT_VARIABLE: Final = "SOCKS_TUNNEL_PARENT"
"""Holds the process id of a parent that an instance must not outlive; `demo` and `exec` set it."""

# What concerns the main process alone must not reach its children: one that answered the service
# manager in its name, or took its sockets, would be believed.
OWN_ENVIRONMENT: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_PID",
    "LISTEN_FDNAMES",
    "CREDENTIALS_DIRECTORY",
)
