"""A configuration as the program uses it: plain values without checks.

:mod:`socks_tunnel.config.loader` checks a file by the models of :mod:`socks_tunnel.config.models`
and returns these. The attributes are named as in the file, and tests hold them equal to the models.
So a process that only uses a configuration does not need the validation library, which takes
11 MiB. Durations are seconds, paths are absolute.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from socks_tunnel.protocol.addresses import HostPort, parse_host_port
from socks_tunnel.protocol.rules import Rules
from socks_tunnel.protocol.settings import LimitSettings, Role, TargetSettings, UdpFiltering

Targets = TargetSettings
Limits = LimitSettings

LIFETIME_MAX: Final = 100 * 366 * 86_400
"""Longest time in seconds that a host may stay. Later dates could not be represented."""


def listener_text(listener: HostPort | Path) -> str:
    """Returns an address, or the path of a Unix socket, as a configuration writes it."""
    return f"unix:{listener}" if isinstance(listener, Path) else str(listener)


@dataclass(frozen=True, slots=True)
class Identity:
    """`[identity]`."""

    private_key_file: Path


@dataclass(frozen=True, slots=True)
class Socks:
    """`[socks]`. An endpoint listens nowhere."""

    listen: tuple[HostPort | Path, ...]
    protocols: tuple[Literal["socks5", "socks4", "http"], ...]
    allow_remote_clients: bool
    users_file: Path | None
    connect_timeout: float
    idle_tcp: float
    idle_udp: int
    udp_address: str
    udp_ports: str


@dataclass(frozen=True, slots=True)
class Peer:
    """`[[peers]]`."""

    name: str
    public_key: str
    old_public_key: str | None
    url: str | None
    tls_ca: Path | None
    proxy: str | None
    rendezvous: str | None
    enrolment_file: Path | None
    policy: str | None
    weight: int


@dataclass(frozen=True, slots=True)
class Forward:
    """`[[forwards]]`."""

    listen: str
    target: HostPort

    @property
    def protocol(self) -> Literal["tcp", "udp"]:
        """What it forwards."""
        return "udp" if self.listen.startswith("udp://") else "tcp"

    @property
    def address(self) -> HostPort:
        """Where it listens."""
        return parse_host_port(self.listen.partition("://")[2])


@dataclass(frozen=True, slots=True)
class Route:
    """`[[routes]]`."""

    name: str
    hosts: Rules
    ports: Rules
    peers: tuple[str, ...]
    policy: Literal["first", "least-loaded", "nearest"]
    failures: int
    recover_after: float
    probe: HostPort | None
    probe_interval: int


@dataclass(frozen=True, slots=True)
class PolicyRules:
    """`[policy]` and `[policies.NAME]`; the rules of a policy file stand here too."""

    policy_file: Path | None
    allowed_hosts: Rules
    allowed_ports: Rules
    denied_hosts: Rules
    denied_ports: Rules


@dataclass(frozen=True, slots=True)
class IceServer:
    """One of `ice.servers`."""

    urls: tuple[str, ...]
    username: str | None
    credential: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Ice:
    """`[ice]`."""

    servers: tuple[IceServer, ...]
    addresses: tuple[str, ...]
    policy: Literal["all", "relay"]
    udp_ports: str
    tls_ca: Path | None
    proxy: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Transport:
    """`[transport]`."""

    fast_path: Literal["auto", "off"]
    congestion: Literal["cubic", "bbr"]


@dataclass(frozen=True, slots=True)
class Workers:
    """`[workers]`."""

    count: int

    @property
    def effective_count(self) -> int:
        """How many workers to start."""
        return self.count or min(len(os.sched_getaffinity(0)), 8)


@dataclass(frozen=True, slots=True)
class Metrics:
    """`[metrics]`."""

    listen: HostPort | None
    hosts: tuple[str, ...]
    show_destinations: bool


@dataclass(frozen=True, slots=True)
class Log:
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"]
    format: Literal["auto", "journal", "json", "text"]


@dataclass(frozen=True, slots=True)
class Audit:
    """`[audit]`."""

    file: Path | None


@dataclass(frozen=True, slots=True)
class JoinJwt:
    """`[join.jwt]`."""

    issuer: str
    audience: str
    jwks: str | Path
    tls_ca: Path | None
    tag_claim: str
    tags: Mapping[str, str]
    lifetime: int
    max_age: int
    leeway: float
    one_time: bool


@dataclass(frozen=True, slots=True)
class GroupEndpoint:
    """One of `join.group.endpoints`."""

    name: str
    public_key: str


@dataclass(frozen=True, slots=True)
class Group:
    """`[join.group]`."""

    name: str
    owner: str
    endpoints: tuple[GroupEndpoint, ...]
    max_age: int


@dataclass(frozen=True, slots=True)
class Join:
    """`[join]`."""

    group: Group | None
    jwt: JoinJwt | None


@dataclass(frozen=True, slots=True)
class Signaling:
    """`[signaling]`."""

    listen: HostPort | Path | None
    tls_certificate: Path | None
    tls_key: Path | None
    rendezvous: str | None
    tls_ca: Path | None


@dataclass(frozen=True, slots=True)
class Config:
    """A whole, checked configuration with the contents of the files that it names.

    It has only the path of the private key. `users` are password hashes by user name (RFC 1929);
    empty: clients need no password. `source` is the configuration file. `warnings` are sentences
    about old spellings that are still accepted.
    """

    role: Role
    drain_timeout: float
    resume_timeout: float
    udp_filtering: UdpFiltering
    rendezvous_clock: bool
    policy_file: Path | None
    include: tuple[str, ...]
    identity: Identity
    socks: Socks
    signaling: Signaling | None
    targets: Targets
    peers: tuple[Peer, ...]
    forwards: tuple[Forward, ...]
    routes: tuple[Route, ...]
    policy: PolicyRules | None
    policies: Mapping[str, PolicyRules]
    ice: Ice
    transport: Transport
    workers: Workers
    limits: Limits
    metrics: Metrics
    log: Log
    audit: Audit
    join: Join
    source: Path
    users: Mapping[str, str] = field(repr=False)
    warnings: tuple[str, ...]

    @property
    def instance(self) -> str:
        """The name of the instance: that of its configuration file."""
        return self.source.stem
