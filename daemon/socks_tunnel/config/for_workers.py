"""The part of the configuration that workers get."""

from typing import Any

from socks_tunnel.config.settings import Config, PolicyRules
from socks_tunnel.protocol.routes import DEFAULT
from socks_tunnel.protocol.settings import (
    AuditSettings,
    LogSettings,
    PeerSettings,
    RouteSettings,
    RuleSettings,
    SocksSettings,
    WorkerSettings,
)


def worker_settings(config: Config) -> WorkerSettings:
    """Returns the part that a worker needs, with the content of the files that it names."""
    return WorkerSettings(
        role=config.role,
        udp_filtering=config.udp_filtering,
        socks=SocksSettings(
            connect_timeout=config.socks.connect_timeout,
            idle_tcp=config.socks.idle_tcp,
            idle_udp=config.socks.idle_udp,
            protocols=config.socks.protocols,
            udp_address=config.socks.udp_address,
            udp_ports=config.socks.udp_ports,
        ),
        targets=config.targets,
        limits=config.limits,
        log=LogSettings(level=config.log.level),
        audit=AuditSettings(file=str(config.audit.file or "")),
        peers=tuple(PeerSettings(name=peer.name, policy=peer.policy) for peer in config.peers),
        routes=route_settings(config),
        policy=None if config.policy is None else _rules(config.policy),
        policies={name: _rules(table) for name, table in config.policies.items()},
        users=config.users,
    )


def route_settings(config: Config) -> tuple[RouteSettings, ...]:
    """Returns the routes of a gateway. Without `[[routes]]`, one route has every destination.

    In that route, only the state of the links decides.
    """
    if config.role != "gateway":
        return ()
    if not config.routes:
        return (RouteSettings(DEFAULT),)
    return tuple(
        RouteSettings(
            name=route.name or f"routes[{number}]",
            hosts=route.hosts,
            ports=route.ports,
            peers=route.peers,
            policy=route.policy,
            failures=route.failures,
            recover_after=route.recover_after,
            probe=route.probe,
            probe_interval=route.probe_interval,
        )
        for number, route in enumerate(config.routes)
    )


def dump(config: Config) -> dict[str, Any]:
    """Returns :func:`worker_settings` in the form that an IPC frame carries."""
    return worker_settings(config).to_map()


def _rules(table: PolicyRules) -> RuleSettings:
    return RuleSettings(
        allowed_hosts=table.allowed_hosts,
        allowed_ports=table.allowed_ports,
        denied_hosts=table.denied_hosts,
        denied_ports=table.denied_ports,
    )
