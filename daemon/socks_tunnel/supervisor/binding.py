"""Binds everything that an instance listens on, before anything else of it starts.

Sockets that systemd has bound stand in for those of the configuration with the same address.
"""

import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from socks_tunnel.config.settings import Config, listener_text
from socks_tunnel.supervisor.listeners import (
    Listener,
    ListenError,
    activated_sockets,
    check_reach,
    listens_at,
    open_forwards,
    open_listeners,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Bound:
    """What is bound: the exporter's listener, and those of clients, forwards first."""

    metrics: Listener | None
    clients: list[Listener]


def bind(config: Config, control: Path, environment: Mapping[str, str]) -> Bound:
    """Returns the listeners of an instance. `control` is the path of its control socket.

    Raises :class:`ListenError`, and :class:`RemoteListenerError` for an address that others can
    reach without a password; nothing is left open then.
    """
    activated = activated_sockets(environment)
    bound: list[Listener] = []
    try:
        metrics = _bind_metrics(config, activated)
        bound += metrics
        clients = _bind_clients(config, control, activated, bound)
    except ListenError:
        for listener in bound:
            listener.close()
        for sock in activated:
            sock.close()
        raise
    for sock in activated:
        _log.warning("systemd passed a socket that nothing is configured for: %s", sock)
        sock.close()
    return Bound(metrics[0] if metrics else None, clients)


def _bind_metrics(config: Config, activated: list[socket.socket]) -> list[Listener]:
    where = config.metrics.listen
    if where is None:
        return []
    matching = [sock for sock in activated if listens_at(sock, where)][:1]
    for sock in matching:
        activated.remove(sock)
    return open_listeners("metrics.listen", [where], matching)


def _bind_clients(
    config: Config, control: Path, activated: list[socket.socket], bound: list[Listener]
) -> list[Listener]:
    """Returns the listeners for clients. Each is put into `bound` as soon as it is open."""
    if config.role != "gateway":
        return []
    if control in config.socks.listen:
        raise ListenError(
            f"socks.listen: cannot listen on {listener_text(control)}: it is the control "
            "socket of this instance; choose another path"
        )
    forwards = [(f.protocol, f.address, f.target) for f in config.forwards]
    clients = open_forwards(forwards, activated)
    bound += clients
    socks = open_listeners("socks.listen", config.socks.listen, activated)
    bound += socks
    clients += socks
    check_reach(
        clients,
        allow_remote_clients=config.socks.allow_remote_clients,
        has_users=config.socks.users_file is not None,
    )
    return clients


def row_of(listener: Listener) -> list[Any]:
    """Returns a listener as a worker's configuration has it: descriptor, kind, target or none."""
    host, port = listener.target if listener.target is not None else ("", 0)
    return [listener.socket.fileno(), listener.kind, host, port]
