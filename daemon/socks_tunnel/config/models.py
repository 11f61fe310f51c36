"""The tables of a configuration: one class for each, with the default of each setting.

These classes check each value by itself. Whatever depends on the role, on other settings or
on files is checked by :mod:`socks_tunnel.config.loader`. Durations are seconds. Paths are absolute
once read: relative ones are relative to the configuration file.

This file is long because all tables stand together, as they do in a configuration.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeAlias

from pydantic import (
    Field,
    PlainSerializer,
    PlainValidator,
    StrictBool,
    ValidationInfo,
    field_validator,
    model_validator,
)

from socks_tunnel.config.basics import (
    Destination,
    PeerName,
    PolicyRuleList,
    Positive,
    Seconds,
    Table,
    public_key,
    text_of,
)
from socks_tunnel.config.joining import Group, GroupEndpoint, Join, JoinJwt  # noqa: F401 - each table has its name here
from socks_tunnel.config.routes import Route
from socks_tunnel.config.settings import listener_text
from socks_tunnel.config.urls import checked_url
from socks_tunnel.protocol.addresses import HostPort, canonical_host, parse_host_port, parse_ip
from socks_tunnel.protocol.flow import WORKERS_MAX
from socks_tunnel.protocol.ice_urls import parse_ice_url, parse_udp_ports
from socks_tunnel.protocol.routes import ROUTES_MAX
from socks_tunnel.protocol.urls import NO_PROXY, Proxy

_INTERFACE = re.compile(r"[A-Za-z0-9_.@-]{1,15}")  # IFNAMSIZ is 16 with the final NUL
_LOOKS_NUMERIC = re.compile(r"[0-9./]+|.*[:/].*")

UNIX_PATH_MAX: Final = 107
"""Longest path of a Unix socket in bytes: sun_path has 108 with the final NUL (unix(7))."""


# --- values -----------------------------------------------------------------------------------
# Each takes the text from a file, or a value that was made of such a text before. So tables can be
# built in code, and read back from what `loader.dump` gave. All raise ValueError, because pydantic
# reports that. No message repeats a text that may contain a password.


def _search_domain(value: Any) -> str:
    domain = canonical_host(text_of(value))
    if parse_ip(domain) is not None:
        raise ValueError(f"{domain} is an address, not a domain")
    return domain


def _own_name(value: Any) -> str:
    name = canonical_host(text_of(value))
    if parse_ip(name) is not None:
        raise ValueError(f"{name} is an address; every address is allowed")
    return name


def _proxy(value: Any) -> str | None:
    text = "" if value is None else text_of(value)  # None: as it is dumped for a worker
    if text not in {"", NO_PROXY}:
        Proxy.parse(text)
    return text or None


def _absolute(text: str, info: ValidationInfo) -> Path:
    directory: Path = (info.context or {}).get("directory", Path("/"))
    if not text:
        raise ValueError("the path is empty")
    return directory / text


def _path(value: Any, info: ValidationInfo) -> Path:
    return value if isinstance(value, Path) else _absolute(text_of(value), info)


def _optional_path(value: Any, info: ValidationInfo) -> Path | None:
    return None if value is None or value == "" else _path(value, info)


def _listener(value: Any) -> HostPort:
    text = str(value) if isinstance(value, HostPort) else text_of(value)
    if text.startswith("unix:"):
        raise ValueError("cannot be a Unix socket; socks.listen and signaling.listen can")
    listener = parse_host_port(text)
    if parse_ip(listener.host) is None:
        raise ValueError(
            f"{listener.host!r} is a name; a listener needs an address (127.0.0.1, [::1])"
        )
    return listener


def _socks_listener(value: Any, info: ValidationInfo) -> HostPort | Path:
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.startswith("unix:"):
        return _listener(value)
    name = value.removeprefix("unix:")
    if name.startswith("@"):
        raise ValueError("abstract Unix sockets have no permissions; give a path")
    if "\0" in name or name.endswith("/"):
        raise ValueError(f"{name!r} cannot be the path of a Unix socket")
    path = _absolute(name, info)
    size = len(os.fsencode(path))
    if size > UNIX_PATH_MAX:
        raise ValueError(
            f"{path} has {size} bytes; the path of a Unix socket has at most {UNIX_PATH_MAX}"
        )
    return path


def _optional_listener(value: Any) -> HostPort | None:
    return None if value is None or value == "" else _listener(value)


def _signaling_listener(value: Any, info: ValidationInfo) -> HostPort | Path:
    if isinstance(value, Path):
        return value
    if isinstance(value, str) and value.startswith("unix:"):
        return _absolute(value.removeprefix("unix:"), info)
    return _listener(value)


def _signaling_url(value: Any, info: ValidationInfo) -> str:
    text = text_of(value)
    for prefix in ("http+unix://", "unix:"):
        if text.startswith(prefix):
            return f"unix:{_absolute(text.removeprefix(prefix), info)}"
    return checked_url(
        text, {"http", "https"}, "is none of http://HOST:PORT/, https://HOST/ and unix:PATH"
    )


def _rendezvous_url(value: Any) -> str | None:
    if value is None or value == "":
        return None
    return checked_url(
        text_of(value), {"ws", "wss"}, "is neither wss://HOST[:PORT]/ nor ws://HOST[:PORT]/"
    )


def _optional_public_key(value: Any) -> str | None:
    return None if value is None or value == "" else public_key(value)


def _candidate_filter(value: Any) -> str:
    """Checks an interface name, an address or a range. The latter two become canonical."""
    text = text_of(value)
    try:
        if "/" in text:
            return str(ipaddress.ip_network(text, strict=False))
        if _LOOKS_NUMERIC.fullmatch(text):
            return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError(f"{text!r} is not an address or a range of addresses") from None
    if not _INTERFACE.fullmatch(text):
        raise ValueError(f"{text!r} is no interface name, address or range of addresses")
    return text


def _ice_url(value: Any) -> str:
    text = text_of(value)
    parse_ice_url(text)
    return text


def _optional_address(value: Any) -> str:
    text = text_of(value)
    address = parse_ip(text)
    if text and address is None:
        raise ValueError(f"{text!r} is no IP address")
    return str(address) if address is not None else ""


def _udp_ports(value: Any) -> str:
    text = text_of(value)
    parse_udp_ports(text)
    return text


def _forward_listener(value: Any) -> str:
    text = text_of(value)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in {"tcp", "udp"}:
        raise ValueError(f"{text!r} is neither tcp://ADDRESS:PORT nor udp://ADDRESS:PORT")
    return f"{scheme}://{_listener(rest)}"


_as_text = PlainSerializer(listener_text, when_used="unless-none")

Listener: TypeAlias = Annotated[HostPort | Path, PlainValidator(_socks_listener), _as_text]
FilePath: TypeAlias = Annotated[Path, PlainValidator(_path)]
OptionalFilePath: TypeAlias = Annotated[Path | None, PlainValidator(_optional_path)]


# --- tables -----------------------------------------------------------------------------------


class Identity(Table):
    """`[identity]`: the private key of this host."""

    private_key_file: FilePath | None = None
    """PEM file (PKCS #8, Ed25519). None only before loading: then the systemd credential is
    used."""


class Socks(Table):
    """`[socks]`: the proxy's listeners of a gateway."""

    listen: tuple[Listener, ...] = (HostPort("127.0.0.1", 1080), HostPort("::1", 1080))
    """Addresses and ports, and paths of Unix sockets (written `unix:PATH`)."""
    protocols: tuple[Literal["socks5", "socks4", "http"], ...] = ("socks5", "socks4", "http")
    """Protocols of each listener. The first byte of a client tells which one it speaks."""
    allow_remote_clients: StrictBool = False
    users_file: OptionalFilePath = None
    connect_timeout: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] = 30
    idle_tcp: Seconds = 0
    """0: never."""
    idle_udp: Positive = 300
    udp_address: Annotated[str, PlainValidator(_optional_address)] = ""
    """Address of UDP relays that clients are told; empty: the one to which they connected."""
    udp_ports: Annotated[str, PlainValidator(_udp_ports)] = ""
    """Range of ports for UDP relays, such as `40000-40100`; empty: any."""

    @field_validator("protocols")
    @classmethod
    def _something_is_spoken(cls, protocols: tuple[str, ...]) -> tuple[str, ...]:
        if not protocols:
            raise ValueError("names no protocol")
        return protocols


class Targets(Table):
    """`[targets]`: how an endpoint reaches what gateways ask for."""

    connect_timeout: Annotated[float, Field(gt=0, strict=True, allow_inf_nan=False)] = 30
    """Seconds to look a name up and to connect."""
    keepalive: Annotated[int, Field(ge=0, le=32_767, strict=True)] = 60
    """Seconds of silence before TCP asks whether a target is still there; 0: never."""
    user_timeout: Annotated[int, Field(ge=0, le=86_400, strict=True)] = 120
    """Seconds for which bytes may stay unacknowledged (RFC 5482); 0: the system's default."""
    search: tuple[Annotated[str, PlainValidator(_search_domain)], ...] = Field(
        default=(), max_length=6
    )
    """Domains that are appended to names of one label, before the policy decides."""


class Peer(Table):
    """`[[peers]]`: a host at the other end of a link."""

    name: PeerName
    public_key: Annotated[str, PlainValidator(public_key)]
    """Base64 of the 32 raw bytes, in canonical form."""
    old_public_key: Annotated[str | None, PlainValidator(_optional_public_key)] = None
    """Of an endpoint's peer: a second key that is accepted while the gateway changes its key."""
    url: Annotated[str, PlainValidator(_signaling_url)] | None = None
    """Of a gateway's peer: `http://HOST:PORT/…`, `https://…` or `unix:/PATH`."""
    tls_ca: OptionalFilePath = None
    """Of a gateway's peer with an https url or a wss rendezvous: PEM file of CA certificates for
    them. None: those that the system trusts."""
    proxy: Annotated[str | None, PlainValidator(_proxy)] = None
    """Of a gateway's peer: `http://[USER:PASSWORD@]HOST[:PORT]`, or `none`. None: what the
    environment says (HTTPS_PROXY, http_proxy, NO_PROXY)."""
    rendezvous: Annotated[str | None, PlainValidator(_rendezvous_url)] = None
    """Of a gateway's peer: `wss://HOST[:PORT]/` of the service through which it is reached, after
    the url if there is one."""
    enrolment_file: OptionalFilePath = None
    """Of a gateway's peer: the peer's signed enrolment of this host's key, for the rendezvous
    service. `socks-tunnel join` writes the file."""
    policy: str | None = None
    """Of an endpoint's peer: the name of one of `[policies]`. None: the `[policy]` table."""
    weight: Annotated[int, Field(ge=1, le=100, strict=True)] = 1
    """Its share of this process relative to other peers, while all of them have more to send."""


class Forward(Table):
    """`[[forwards]]`: a local port that leads to one target."""

    listen: Annotated[str, PlainValidator(_forward_listener)]
    """`tcp://ADDRESS:PORT` or `udp://ADDRESS:PORT`, in canonical form."""
    target: Destination


class PolicyRules(Table):
    """`[policy]` and `[policies.NAME]`: rules as written, in a list or as the lines of one text."""

    policy_file: OptionalFilePath = None
    """JSON file with the rules. Once loaded, the rules are in the fields below."""
    allowed_hosts: PolicyRuleList = ()
    allowed_ports: PolicyRuleList = ()
    denied_hosts: PolicyRuleList = ()
    denied_ports: PolicyRuleList = ()


class IceServer(Table):
    """One of `ice.servers`: a STUN or TURN server."""

    urls: tuple[Annotated[str, PlainValidator(_ice_url)], ...]
    username: str | None = None
    credential: str | None = Field(default=None, repr=False)

    @field_validator("urls", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("urls")
    @classmethod
    def _at_least_one(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        if not urls:
            raise ValueError("must not be empty")
        return urls

    @model_validator(mode="after")
    def _turn_needs_a_login(self) -> Self:
        needed = any(url.startswith("turn") for url in self.urls)
        if needed and (self.username is None or self.credential is None):
            raise ValueError("a turn: server needs username and credential")
        return self


class Ice(Table):
    """`[ice]`: how the peer connection finds a path (RFC 8445)."""

    servers: tuple[IceServer, ...] = ()
    addresses: tuple[Annotated[str, PlainValidator(_candidate_filter)], ...] = ()
    """Interfaces, addresses and ranges that candidates are restricted to; empty: all."""
    policy: Literal["all", "relay"] = "all"
    """`relay`: only relayed candidates, so that the peer does not learn this host's addresses."""
    udp_ports: Annotated[str, PlainValidator(_udp_ports)] = ""
    """Lowest and highest local port of candidates, as `40000-40100`; empty: the system picks."""
    tls_ca: OptionalFilePath = None
    """PEM file of CA certificates for `turns:` servers. None: those that the system trusts."""
    proxy: Annotated[str | None, PlainValidator(_proxy)] = Field(default=None, repr=False)
    """HTTP proxy for TURN over TCP and TLS: `http://USER:PASSWORD@HOST:PORT`, or `none`. None:
    HTTPS_PROXY and NO_PROXY of the environment decide."""


class Transport(Table):
    """`[transport]`: what carries the messages of a link."""

    fast_path: Literal["auto", "off"] = "auto"
    """`off`: unmodified aiortc."""
    congestion: Literal["cubic", "bbr"] = "cubic"
    """The congestion controller of what this host sends on the fast path."""


class Workers(Table):
    """`[workers]`: the processes that carry the flows."""

    count: Annotated[int, Field(ge=0, le=WORKERS_MAX, strict=True)] = 0
    """0: one for each core that this process may use, at most 8."""


class Limits(Table):
    """`[limits]`: bounds for one worker, and for one client."""

    flows_per_worker: Positive = 20_000
    memory_per_worker: Annotated[int, Field(ge=16 << 20, strict=True)] = 256 << 20
    """Bytes for the windows of all flows; at least 16 MiB."""
    associations_per_client: Positive = 256
    """UDP associations at once from one client address."""


OptionalListener: TypeAlias = Annotated[
    HostPort | None, PlainValidator(_optional_listener), _as_text
]


class MetricsListener(Table):
    """`[metrics]` of the rendezvous service. None, written `""`: there is no listener."""

    listen: OptionalListener = None
    hosts: tuple[Annotated[str, PlainValidator(_own_name)], ...] = Field(default=(), max_length=32)
    """Names by which the listener may be asked, besides every address and `localhost`."""


class Metrics(MetricsListener):
    """`[metrics]`: where the exporter listens. None, written `""`: there is no exporter."""

    listen: OptionalListener = HostPort("127.0.0.1", 9464)
    show_destinations: StrictBool = False
    """Whether the status page names destinations, clients and rules of the policy."""


class Log(Table):
    """`[log]`."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "journal", "json", "text"] = "auto"


class Audit(Table):
    """`[audit]`: who has reached what."""

    file: OptionalFilePath = None
    """File to which audit records are also appended, a JSON object in each line. None: only the
    log."""


class Signaling(Table):
    """`[signaling]`: where an endpoint receives offers."""

    listen: (
        Annotated[
            HostPort | Path,
            PlainValidator(_signaling_listener),
            _as_text,
        ]
        | None
    ) = None
    """An address and port, or the path of a Unix socket (written `unix:PATH`)."""
    tls_certificate: OptionalFilePath = None
    """PEM chain, the host's own certificate first. With it, the listener is HTTPS. None: plain
    HTTP."""
    tls_key: OptionalFilePath = None
    """PEM file. None: the file of the certificate contains the key too."""
    rendezvous: Annotated[str | None, PlainValidator(_rendezvous_url)] = None
    """`wss://HOST[:PORT]/` of a service that also brings offers, besides the listener."""
    tls_ca: OptionalFilePath = None
    """PEM file of CA certificates for the service. None: those of the system."""


class ConfigFile(Table):
    """Everything that a configuration file can contain, before the files that it names are read."""

    role: Literal["gateway", "endpoint"]
    drain_timeout: Seconds = 20
    resume_timeout: Seconds = 3600
    udp_filtering: Literal[
        "address-dependent", "endpoint-independent", "address-and-port-dependent"
    ] = "address-dependent"
    rendezvous_clock: StrictBool = False
    """Whether offers and answers use the time of the rendezvous service, not that of this host."""
    policy_file: OptionalFilePath = None
    """The same as `policy_file` in `[policy]`."""
    include: tuple[str, ...] = ()
    """Patterns of further files with peers, policies and rules; relative to this file."""
    identity: Identity = Identity()
    socks: Socks = Socks()
    signaling: Signaling | None = None
    targets: Targets = Targets()
    peers: tuple[Peer, ...] = ()
    forwards: tuple[Forward, ...] = ()
    routes: tuple[Route, ...] = Field(default=(), max_length=ROUTES_MAX)
    policy: PolicyRules | None = None
    policies: dict[str, PolicyRules] = Field(default={})
    ice: Ice = Ice()
    transport: Transport = Transport()
    workers: Workers = Workers()
    limits: Limits = Limits()
    metrics: Metrics = Metrics()
    log: Log = Log()
    audit: Audit = Audit()
    join: Join = Join()


class Config(ConfigFile):
    """A whole, checked configuration with the contents of the files that it names.

    It has only the path of the private key.
    """

    source: FilePath
    """The configuration file."""
    users: dict[str, str] = Field(default={}, repr=False)
    """Password hashes by user name (RFC 1929); empty: clients need no password."""
    warnings: tuple[str, ...] = ()
    """Sentences about old spellings that are still accepted, each with its place."""
