"""What a worker needs of the configuration, as plain values: no files, no validation library.

The supervisor checks the configuration and sends this; a worker takes it as it is. The attributes
are named as in the configuration file, so that code finds a setting where the manual has it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self, TypeVar, get_args

from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.rules import Rules

Role = Literal["gateway", "endpoint"]
UdpFiltering = Literal["address-dependent", "endpoint-independent", "address-and-port-dependent"]

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class SocksSettings:
    """`[socks]`: what the clients of a gateway get; seconds."""

    connect_timeout: float = 30
    idle_tcp: float = 0
    idle_udp: float = 300
    protocols: tuple[str, ...] = ("socks5", "socks4", "http")
    udp_address: str = ""
    udp_ports: str = ""


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """`[targets]`: how an endpoint reaches targets; seconds."""

    connect_timeout: float = 30
    keepalive: int = 60
    user_timeout: int = 120
    search: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """`[limits]`."""

    flows_per_worker: int = 20_000
    memory_per_worker: int = 268_435_456
    associations_per_client: int = 256


@dataclass(frozen=True, slots=True)
class LogSettings:
    """`[log]`, as far as it changes while a worker runs."""

    level: str = "info"


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """`[audit]`: the file for audit records, besides the log; "": none."""

    file: str = ""


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """A peer, and which of the policies holds for its flows; None: the default one."""

    name: str
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """The rules of one policy, as they were written."""

    allowed_hosts: Rules = ()
    allowed_ports: Rules = ()
    denied_hosts: Rules = ()
    denied_ports: Rules = ()


@dataclass(frozen=True, slots=True)
class RouteSettings:
    """A route of a gateway, with its rules as they were written; seconds."""

    name: str
    hosts: Rules = "*"
    ports: Rules = "*"
    peers: tuple[str, ...] = ()
    """Empty: all of them, in the order of the configuration."""
    policy: str = "first"
    failures: int = 0
    recover_after: float = 0
    probe: tuple[str, int] | None = None
    probe_interval: int = 5


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """All of it. `users` are password hashes by name; empty: clients need no password."""

    role: Role
    udp_filtering: UdpFiltering = "address-dependent"
    socks: SocksSettings = SocksSettings()
    targets: TargetSettings = TargetSettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    audit: AuditSettings = AuditSettings()
    peers: tuple[PeerSettings, ...] = ()
    routes: tuple[RouteSettings, ...] = ()
    """Of a gateway: never empty. Without `[[routes]]` there is the one that has everything."""
    policy: RuleSettings | None = None
    policies: Mapping[str, RuleSettings] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict, repr=False)

    def to_map(self) -> dict[str, Any]:
        """Returns the form that an IPC frame carries. Thousands of peers take a millisecond."""
        tables = ("socks", "targets", "limits", "log", "audit")
        return {
            "role": self.role,
            "udp_filtering": self.udp_filtering,
            **{name: asdict(getattr(self, name)) for name in tables},
            "peers": [(peer.name, peer.policy) for peer in self.peers],
            "routes": [asdict(route) for route in self.routes],
            "policy": None if self.policy is None else asdict(self.policy),
            "policies": {name: asdict(rules) for name, rules in self.policies.items()},
            "users": dict(self.users),
        }

    @classmethod
    def from_map(cls, values: Mapping[str, Any]) -> Self:
        """Returns what :meth:`to_map` was called on.

        Raises :class:`ValueError` for a map of another version of this program.
        """
        known = {entry.name for entry in fields(cls)}
        if values.keys() != known or values["role"] not in get_args(Role):
            raise ValueError("the settings are of another version: other keys, or another role")
        try:
            policy = values["policy"]
            return cls(
                role=values["role"],
                udp_filtering=values["udp_filtering"],
                socks=_restored(SocksSettings, values["socks"]),
                targets=_restored(TargetSettings, values["targets"]),
                limits=_restored(LimitSettings, values["limits"]),
                log=_restored(LogSettings, values["log"]),
                audit=_restored(AuditSettings, values["audit"]),
                peers=tuple(PeerSettings(name, policy) for name, policy in values["peers"]),
                routes=tuple(_restored(RouteSettings, route) for route in values["routes"]),
                policy=None if policy is None else _restored(RuleSettings, policy),
                policies={
                    name: _restored(RuleSettings, rules)
                    for name, rules in values["policies"].items()
                },
                users=dict(values["users"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the settings are of another version: {clip(error)}") from None


def _restored(kind: type[_T], values: Mapping[str, Any]) -> _T:
    """Returns a table; msgpack has made lists of its tuples."""
    known = {entry.name for entry in fields(kind)}  # type: ignore[arg-type]  # all are dataclasses
    if values.keys() != known:
        raise TypeError(f"{kind.__name__} has {sorted(known)}")
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})
