"""The ICE settings of a link, and their way to the connection that gathers candidates."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from aiortc import RTCIceServer

from socks_tunnel.protocol.datagram_relay import DatagramRelay
from socks_tunnel.protocol.ice_urls import IceUrl, parse_ice_url


@dataclass(frozen=True, slots=True)
class IceSettings:
    """The servers to ask for candidates, and which candidates are allowed.

    `servers`: mappings with `urls` (text or a list of it: `stun:host:port`, `turn:host:port`), and
    for TURN `username` and `credential`. With an empty list, no server is asked: there is no
    default server.

    `addresses`: names of interfaces, addresses, or ranges such as `10.0.0.0/8`. If it is not empty,
    only addresses that one of them covers become candidates. A loopback address becomes one only if
    it is covered by an entry that is itself loopback: `127.0.0.1`, `127.0.0.0/8`, `::1`, `lo`.
    """

    servers: Sequence[Mapping[str, Any]] = field(default_factory=tuple, repr=False)
    addresses: Sequence[str] = field(default_factory=tuple)
    policy: Literal["all", "relay", "direct"] = "all"
    """`relay`: only relayed candidates. `direct`: no relayed ones, neither ours nor the peer's."""
    udp_ports: tuple[int, int] | None = None
    """Lowest and highest local port of host candidates. None: the system picks."""
    tls_ca: Path | None = None
    """PEM file of CA certificates for `turns:` servers. None: those that the system trusts."""
    proxy: str | None = field(default=None, repr=False)
    """As `ice.proxy` of the configuration; None leaves it to the environment."""
    towards: str = ""
    """Name or address of a host in the direction of the peer. The local address that leads there
    comes first. Empty if none is known."""
    relay: DatagramRelay | None = field(default=None, repr=False)
    """A relay of signalling that both sides can use; None if there is none."""


@dataclass(frozen=True, slots=True)
class IceServer:
    """One URL of a STUN or TURN server, with the login that TURN needs."""

    url: IceUrl
    username: str | None = None
    credential: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{'STUN' if self.url.scheme == 'stun' else 'TURN'} server {self.url}"


def parse_servers(settings: IceSettings) -> list[IceServer]:
    """Returns one entry for each URL. Raises :class:`ValueError` with a sentence."""
    servers = []
    for entry in settings.servers:
        unknown = entry.keys() - {"urls", "username", "credential"}
        if unknown or not entry.get("urls"):
            what = f"has the unknown key {min(unknown)!r}" if unknown else "has no urls"
            raise ValueError(f"an ICE server {what}")
        urls = entry["urls"]
        for text in [urls] if isinstance(urls, str) else urls:
            try:
                url = parse_ice_url(text)
            except ValueError as error:
                raise ValueError(f"the ICE server {text!r} cannot be used: {error}") from None
            username, credential = entry.get("username"), entry.get("credential")
            if url.scheme != "stun" and (username is None or credential is None):
                raise ValueError(
                    f"the ICE server {text!r} cannot be used: it needs username and credential"
                )
            servers.append(IceServer(url, username, credential))
    return servers


def rtc_servers(settings: IceSettings) -> list[RTCIceServer]:
    """Returns the servers for aiortc itself: none, because it would ask only one of each kind.

    Raises :class:`ValueError` with a sentence for a server that cannot be used.
    """
    parse_servers(settings)
    return []


_settings: ContextVar[IceSettings | None] = ContextVar("ice_settings", default=None)


@contextmanager
def candidate_addresses(settings: IceSettings) -> Iterator[None]:
    """Makes connections that gather inside this block use `settings`.

    aiortc makes the connection itself and knows nothing of these settings, so they travel in a
    context variable, which the tasks that gather inherit.
    """
    token = _settings.set(settings)
    try:
        yield
    finally:
        _settings.reset(token)


def current_settings() -> IceSettings | None:
    """Returns the settings for the connection that gathers now; None if it is not ours."""
    return _settings.get()
