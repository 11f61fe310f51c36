"""The configuration of the rendezvous service: its tables, and how they are read and checked."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainValidator,
    StrictBool,
    StringConstraints,
    ValidationError,
)

from socks_tunnel.config.basics import PeerName, Positive, Seconds, Table, public_key
from socks_tunnel.config.documents import read_toml
from socks_tunnel.config.errors import ConfigError, Problem, unknown_key
from socks_tunnel.config.models import (
    FilePath,
    Listener,
    Log,
    MetricsListener,
    OptionalFilePath,
)
from socks_tunnel.config.positions import KeyPath
from socks_tunnel.config.wording import key_text, sentence, upwards
from socks_tunnel.ops.files import read_whole
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.ice_urls import parse_ice_url
from socks_tunnel.protocol.rendezvous import TURN_SERVERS_MAX, TURN_URLS_MAX
from socks_tunnel.signaling.tls import TlsFileError, read_server_certificate

_T = TypeVar("_T")

KEYS_MAX: Final = 65_536
"""Keys that may be listed."""

TURN_SECRET_MIN: Final = 16
"""Fewest bytes of the secret that the service shares with TURN servers."""


def _turn_url(value: Any) -> str:
    """Returns a URL of a TURN server. Raises :class:`ValueError`."""
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - pydantic reports it
    if parse_ice_url(value).scheme == "stun":
        raise ValueError("is no TURN server: name STUN servers in [ice] of each host")
    return value


def _redis_url(value: Any) -> str:
    """Returns a URL of a Redis server, or an empty text. Raises :class:`ValueError`."""
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - pydantic reports it
    if value and not value.startswith(("redis://", "rediss://", "unix://")):
        # The message does not repeat the text, which may contain a password.
        raise ValueError("must be redis://[:PASSWORD@]HOST[:PORT]/, rediss://… or unix:///PATH")
    return value


def _some(values: tuple[_T, ...], most: int) -> tuple[_T, ...]:
    """Returns the value if it has 1 to `most` entries. Raises :class:`ValueError` otherwise."""
    if not values:
        raise ValueError("must not be empty")
    if len(values) > most:
        raise ValueError(f"has more than {most} entries")
    return values


class Key(Table):
    """`[[keys]]`: a host that may connect."""

    name: PeerName
    public_key: Annotated[str, PlainValidator(public_key)]


class Relay(Table):
    """`[relay]`: datagrams over the service, for hosts that no UDP path reaches."""

    enabled: StrictBool = False
    bytes_per_second: Positive = 2_000_000
    """Bytes per second that each key may send."""
    sessions: Positive = 1024
    """Number of connections between two hosts that may be relayed at a time."""
    idle_timeout: Seconds = 60
    """Seconds without a datagram after which such a connection is forgotten."""


class TurnServer(Table):
    """One of `turn.servers`. The service makes the logins, so there are none here."""

    urls: Annotated[
        tuple[Annotated[str, PlainValidator(_turn_url)], ...],
        BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
        AfterValidator(partial(_some, most=TURN_URLS_MAX)),
    ]


class Turn(Table):
    """`[turn]`: TURN servers for which the service hands out logins."""

    servers: Annotated[
        tuple[TurnServer, ...], AfterValidator(partial(_some, most=TURN_SERVERS_MAX))
    ]
    secret_file: FilePath
    """File with the secret that the servers know as `static-auth-secret`."""


class RendezvousFile(Table):
    """Everything that the file can contain."""

    listen: Listener
    """An address and port, or the path of a Unix socket (written `unix:PATH`)."""
    tls_certificate: OptionalFilePath = None
    """PEM chain. None: a proxy in front of the service terminates TLS."""
    tls_key: OptionalFilePath = None
    names: tuple[Annotated[str, StringConstraints(to_lower=True, min_length=1)], ...] = ()
    """Host names by which clients reach it; empty: those of the certificate, or else any."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses of proxies whose X-Forwarded-For is trusted; `unix` for a Unix socket."""
    clients: Literal["listed", "enrolled", "any"] = "listed"
    clients_max: Positive = 20_000
    """Most clients at a time."""
    drain_timeout: Seconds = 10
    """Seconds over which clients are asked to leave before the service ends."""
    redis_url: Annotated[str, PlainValidator(_redis_url)] = Field(default="", repr=False)
    """Redis through which several nodes of one service meet; empty: this is the only node."""
    keys: Annotated[tuple[Key, ...], Field(max_length=KEYS_MAX)] = ()
    relay: Relay = Relay()
    turn: Turn | None = None
    metrics: MetricsListener = MetricsListener()
    log: Log = Log()


class RendezvousConfig(RendezvousFile):
    """A whole, checked configuration."""

    source: FilePath


def load_rendezvous(path: Path) -> RendezvousConfig:
    """Reads and checks the configuration of a service. Raises :class:`ConfigError`."""
    path = path.absolute()
    raw, lines = read_toml(path)
    if "role" in raw:
        message = "is a configuration of a gateway or an endpoint: socks-tunnel run --config FILE"
        raise ConfigError([Problem(path, None, "", message)])
    problems: list[Problem] = []

    def add(at: KeyPath, message: str) -> None:
        line = next((lines[place] for place in upwards(at) if place in lines), None)
        problems.append(Problem(path, line, key_text(at), message))

    try:
        file = RendezvousFile.model_validate(raw, context={"directory": path.parent})
    except ValidationError as error:
        for details in error.errors(include_url=False):
            at = details["loc"]
            if details["type"] == "extra_forbidden":
                add(at, unknown_key(str(at[-1]), _known(at)))
            else:
                add(at, sentence(details))
        raise ConfigError(problems) from None
    for at, message in _complaints(file):
        add(at, message)
    if problems:
        raise ConfigError(problems)
    fields = {name: getattr(file, name) for name in RendezvousFile.model_fields}
    return RendezvousConfig.model_validate({**fields, "source": path})


def _known(at: KeyPath) -> list[str]:
    """Returns the known keys of the table that contains the unknown key `at`."""
    tables: dict[Any, type[Table]] = {
        "keys": Key,
        "relay": Relay,
        "turn": Turn,
        "metrics": MetricsListener,
        "log": Log,
    }
    if len(at) > 1 and "servers" in at[:-1]:
        return list(TurnServer.model_fields)
    return list((tables[at[0]] if len(at) > 1 else RendezvousFile).model_fields)


def read_turn_secret(path: Path) -> bytes:
    """Returns the secret in a file, without the line end.

    Raises :class:`ValueError` with a sentence that does not hold the secret.
    """
    try:
        secret = read_whole(path).strip()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(secret) < TURN_SECRET_MIN:
        raise ValueError(f"{path} holds fewer than {TURN_SECRET_MIN} bytes: that can be guessed")
    return secret


def _complaints(file: RendezvousFile) -> list[tuple[KeyPath, str]]:
    found: list[tuple[KeyPath, str]] = []
    if file.relay.enabled and not file.keys:
        # With clients = "any", the relay would be open to everybody.
        message = "needs [[keys]]: one of the two hosts that it connects has to be listed"
        found.append((("relay", "enabled"), message))
    if file.turn is not None:
        try:
            read_turn_secret(file.turn.secret_file)
        except ValueError as error:
            found.append((("turn", "secret_file"), str(error)))
    if file.clients != "any" and not file.keys:
        message = f'is missing: nobody could connect while clients = "{file.clients}"'
        found.append((("keys",), message))
    for field in ("name", "public_key"):
        seen: dict[str, int] = {}
        for index, key in enumerate(file.keys):
            first = seen.setdefault(getattr(key, field), index)
            if first != index:
                message = f"is the same as that of keys[{first}]"
                found.append((("keys", index, field), message))
    if file.tls_certificate is None:
        if file.tls_key is not None:
            message = "is missing: tls_key alone makes no listener HTTPS"
            found.append((("tls_certificate",), message))
    elif not isinstance(file.listen, HostPort):
        message = "has no meaning on a Unix socket: that is on no network"
        found.append((("tls_certificate",), message))
    else:
        try:
            read_server_certificate(file.tls_certificate, file.tls_key)
        except TlsFileError as error:
            found.append(((error.key,), str(error)))
    return found
