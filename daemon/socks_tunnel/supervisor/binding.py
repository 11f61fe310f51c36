"""Binds all sockets that an instance listens on, before anything else of it starts.

A socket of systemd takes the place of one of the configuration with the same address.
"""

import logging
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from socks_tunnel.config.settings import Config, listener_text
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.supervisor.listeners import (
    Address,
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
    """The listeners of an instance: the exporter's, and those for clients, forwards first."""

    metrics: Listener | None
    clients: list[Listener]


def bind(
    config: Config,
    control: Path,
    environment: Mapping[str, str],
    inherited: Bound | None = None,
) -> Bound:
    """Returns the listeners of an instance. `control` is the path of its control socket.

    `inherited` are the listeners of the previous program, including those of systemd, which passes
    its sockets only once. Those that serve an address of the configuration are used; the others
    are closed.

    Raises :class:`ListenError`, and :class:`RemoteListenerError` for an address that other hosts
    can reach without a password. Then nothing is left open.
    """
    left = [] if inherited is None else list(inherited.clients)
    left_metrics = [] if inherited is None or inherited.metrics is None else [inherited.metrics]
    activated = activated_sockets(environment) if inherited is None else []
    bound: list[Listener] = []
    try:
        metrics = _bind_metrics(config, activated, left_metrics)
        bound += metrics
        clients = _bind_clients(config, control, activated, left, bound)
    except ListenError:
        for listener in (*bound, *left, *left_metrics):
            listener.close()
        for sock in activated:
            sock.close()
        raise
    for listener in (*left, *left_metrics):
        _log.info("no longer listening on %s", listener_text(listener.address))
        listener.close()
    for sock in activated:
        _log.warning(
            "systemd passed a socket for which nothing is configured: closing it; "
            "check the .socket unit: %s",
            sock,
        )
        sock.close()
    return Bound(metrics[0] if metrics else None, clients)


def _take(left: list[Listener], address: Address, kind: str) -> Listener | None:
    """Takes the listener for an address out of `left`. `kind` is as in :attr:`Listener.kind`."""
    for listener in left:
        if listener.wanted == address and listener.kind == kind:
            left.remove(listener)
            return listener
    return None


def _bind_metrics(
    config: Config, activated: list[socket.socket], left: list[Listener]
) -> list[Listener]:
    where = config.metrics.listen
    if where is None:
        return []
    found = _take(left, where, "socks")
    if found is not None:
        return [found]
    matching = [sock for sock in activated if listens_at(sock, where)][:1]
    for sock in matching:
        activated.remove(sock)
    return open_listeners("metrics.listen", [where], matching)


def _bind_clients(
    config: Config,
    control: Path,
    activated: list[socket.socket],
    left: list[Listener],
    bound: list[Listener],
) -> list[Listener]:
    """Returns the listeners for clients. Adds each to `bound` as soon as it is open."""
    if config.role != "gateway":
        return []
    if control in config.socks.listen:
        raise ListenError(
            f"socks.listen: cannot listen on {listener_text(control)}: it is the control "
            "socket of this instance; choose another path"
        )
    clients: list[Listener] = []
    missing: list[tuple[str, HostPort, HostPort]] = []
    for forward in config.forwards:
        found = _take(left, forward.address, f"forward-{forward.protocol}")
        if found is None:
            missing.append((forward.protocol, forward.address, forward.target))
        else:
            found.target = forward.target
            clients.append(found)
            bound.append(found)
    opened = open_forwards(missing, activated)
    bound += opened
    clients += opened
    kept = {each: found for each in config.socks.listen if (found := _take(left, each, "socks"))}
    bound += kept.values()
    rest = [each for each in config.socks.listen if each not in kept]
    opened = open_listeners("socks.listen", rest, activated, others=bool(kept))
    bound += opened
    both: dict[Address | None, Listener] = {each.wanted: each for each in opened}
    both |= {each.wanted: each for each in kept.values()}
    clients += [both[each] for each in config.socks.listen if each in both]
    check_reach(
        clients,
        allow_remote_clients=config.socks.allow_remote_clients,
        has_users=config.socks.users_file is not None,
    )
    return clients


def row_of(listener: Listener) -> list[Any]:
    """Returns the row of :class:`Configure` for a listener: [descriptor, kind, host, port].

    Host and port are those of a forward's target, else "" and 0.
    """
    host, port = listener.target if listener.target is not None else ("", 0)
    return [listener.socket.fileno(), listener.kind, host, port]
