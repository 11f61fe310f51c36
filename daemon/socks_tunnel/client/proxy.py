"""Finds the proxy of an instance, and makes the environment for programs that use it."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from socks_tunnel.protocol.addresses import HostPort, parse_host_port, parse_ip

USERNAME_VARIABLE: Final = "SOCKS_TUNNEL_USERNAME"
PASSWORD_VARIABLE: Final = "SOCKS_TUNNEL_PASSWORD"  # noqa: S105 - the name of a variable
"""Variables with name and password for a proxy that asks for them (RFC 1929). Arguments would be
visible to all users."""

NO_PROXY: Final = "localhost,127.0.0.0/8,127.0.0.1,::1"
"""Hosts that a child reaches directly: its own host. Not all programs know ranges, so 127.0.0.1 is
named as well."""

_VARIABLES: Final = ("ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY")


class NoProxyError(Exception):
    """The instance has no proxy that can be used. The text is a sentence."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A SOCKS5 proxy: an address and port or the path of a Unix socket, with an optional login."""

    address: HostPort | Path
    username: str | None = None
    password: str | None = None

    def __str__(self) -> str:
        return f"unix:{self.address}" if isinstance(self.address, Path) else str(self.address)

    def connect(self, timeout: float) -> socket.socket:
        """Returns a connection to the proxy. Raises :class:`OSError`."""
        if not isinstance(self.address, Path):
            return socket.create_connection((self.address.host, self.address.port), timeout)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout)
        try:
            sock.connect(str(self.address))
        except OSError:
            sock.close()
            raise
        return sock


def parse_proxy(text: str, environment: Mapping[str, str]) -> Proxy:
    """Returns the proxy at `ADDRESS:PORT` or `unix:PATH`. Raises :class:`ValueError`."""
    login = environment.get(USERNAME_VARIABLE), environment.get(PASSWORD_VARIABLE)
    if text.startswith("unix:"):
        return Proxy(Path(text.removeprefix("unix:")), *login)
    return Proxy(_reachable(parse_host_port(text)), *login)


def proxy_of(summary: Mapping[str, Any], environment: Mapping[str, str]) -> Proxy:
    """Returns the first SOCKS5 listener of an instance. Raises :class:`NoProxyError`."""
    name = summary["instance"]
    if summary["role"] != "gateway":
        raise NoProxyError(f"{name} is an endpoint, and only gateways have a proxy")
    if "socks5" not in summary["protocols"]:
        raise NoProxyError(f"{name} does not speak SOCKS5: its socks.protocols leaves that out")
    listeners: list[str] = summary["listen"]
    if not listeners:
        raise NoProxyError(f"{name} has no listener")
    internet = [text for text in listeners if not text.startswith("unix:")]
    return parse_proxy((internet or listeners)[0], environment)


def proxy_environment(proxy: Proxy, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment of a child that has to use the proxy.

    Names are looked up at the far end (`socks5h`). An inherited NO_PROXY is replaced: it was made
    for another proxy, and may name just the hosts for which the tunnel is needed. Raises
    :class:`NoProxyError` for a Unix socket, which no URL can name.
    """
    if isinstance(proxy.address, Path):
        raise NoProxyError(f"the proxy variables cannot name a Unix socket ({proxy})")
    login = ""
    if proxy.username is not None:
        login = f"{quote(proxy.username, safe='')}:{quote(proxy.password or '', safe='')}@"
    url = f"socks5h://{login}{proxy.address}"
    ours = {**dict.fromkeys(_VARIABLES, url), "NO_PROXY": NO_PROXY}
    return {**environment, **ours, **{name.lower(): value for name, value in ours.items()}}


def _reachable(address: HostPort) -> HostPort:
    """Returns the address at which this host reaches a listener, also one on all addresses."""
    ip = parse_ip(address.host)
    if ip is None or not ip.is_unspecified:
        return address
    return HostPort("127.0.0.1" if ip.version == 4 else "::1", address.port)
