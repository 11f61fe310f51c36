"""URLs of signalling, and the HTTP proxy on the way to one. No socket, no environment of its own.

A proxy is named by the configuration, or else by the environment variables that curl uses:
`https_proxy` or `HTTPS_PROXY` for https, `http_proxy` for http, and `no_proxy` or `NO_PROXY` for
hosts that are reached directly.
"""

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self
from urllib.parse import SplitResult, unquote, urlsplit

from socks_tunnel.protocol.addresses import parse_ip

DEFAULT_PORTS: Final = {"http": 80, "https": 443}

NO_PROXY: Final = "none"
"""As the configured proxy: use none, whatever the environment says."""


def split_url(text: str) -> SplitResult:
    """Returns the parts of a URL, as :func:`urllib.parse.urlsplit` does; `port` can be read.

    Raises :class:`ValueError` with a sentence without the text: those of urllib quote the host and
    the port, and what they take for these may be a password (`http://user:[secret]@host`).
    """
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("the host cannot be read") from None
    try:
        parts.port  # noqa: B018 - reading it is the check
    except ValueError:
        raise ValueError("the port is not a number from 0 to 65535") from None
    return parts


@dataclass(frozen=True, slots=True)
class Url:
    """An http or https URL without user, query and fragment; `host` has no brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns what `text` says. Raises :class:`ValueError` with a sentence without the text."""
        parts = split_url(text)
        if parts.scheme not in DEFAULT_PORTS or not parts.hostname:
            raise ValueError("is none of http://…, https://… and unix:/path")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError("only a host, a port and a path may be given")
        if any(c <= " " or c == "\x7f" or not c.isascii() for c in parts.path):
            raise ValueError("the path has characters that must be escaped (%20)")
        port = DEFAULT_PORTS[parts.scheme] if parts.port is None else parts.port
        return cls(parts.scheme, parts.hostname, port, parts.path or "/")

    @property
    def authority(self) -> str:
        """Host and port as CONNECT has them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        """What two URLs of the same server have in common (RFC 6454)."""
        return self.scheme, self.host.lower(), self.port

    def __str__(self) -> str:
        authority = self.authority
        if DEFAULT_PORTS[self.scheme] == self.port:
            authority = authority.rpartition(":")[0]
        return f"{self.scheme}://{authority}{self.path}"


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy. `credentials` is the value of Proxy-Authorization, or empty; never shown."""

    host: str
    port: int
    credentials: str = ""

    def __repr__(self) -> str:
        return f"<Proxy {self}>"

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Returns the proxy that `http://[user:password@]host[:port]` names.

        Raises :class:`ValueError` with a sentence that does not have the password.
        """
        parts = split_url(text if "://" in text else f"http://{text}")
        if parts.scheme != "http":
            raise ValueError(f"a proxy is given as http://HOST:PORT, not as {parts.scheme}://")
        if not parts.hostname or parts.path not in {"", "/"} or parts.query or parts.fragment:
            raise ValueError("a proxy is given as http://HOST:PORT")
        credentials = ""
        if parts.username is not None:
            pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            credentials = "Basic " + base64.b64encode(pair.encode()).decode("ascii")
        return cls(parts.hostname, 80 if parts.port is None else parts.port, credentials)


def proxy_for(url: Url, configured: str | None, environ: Mapping[str, str]) -> Proxy | None:
    """Returns the proxy for a request, or None.

    `configured` is the setting: None leaves it to the environment. A host on loopback is always
    reached directly. Raises :class:`ValueError` if the proxy that is named cannot be used.
    """
    ip = parse_ip(url.host)
    if url.host.lower() == "localhost" or (ip is not None and ip.is_loopback):
        return None
    if configured is not None:
        return None if configured == NO_PROXY else Proxy.parse(configured)
    # HTTP_PROXY in capitals is what a CGI program gets from a client's header (httpoxy): not read.
    names = ("https_proxy", "HTTPS_PROXY") if url.scheme == "https" else ("http_proxy",)
    name, text = next(((n, environ[n]) for n in names if environ.get(n)), ("", ""))
    exceptions = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if not text or _is_exception(url, exceptions):
        return None
    try:
        return Proxy.parse(text)
    except ValueError as error:
        raise ValueError(f"the environment variable {name}: {error}") from None


def _is_exception(url: Url, exceptions: str) -> bool:
    """Returns whether NO_PROXY names the host of `url`.

    It is a list with commas or spaces of `*`, names (which cover the names below them), addresses
    and ranges of addresses, each with a port if it holds for that port only.
    """
    ip = parse_ip(url.host)
    host = url.host.lower().removesuffix(".")
    for entry in exceptions.replace(",", " ").lower().split():
        if entry == "*":
            return True
        try:
            network = ipaddress.ip_network(entry, strict=False)
        except ValueError:  # a name, something in brackets, or something with a port
            network = None
        if network is not None:
            if ip is not None and ip in network:
                return True
            continue
        name, colon, port = entry.rpartition(":")
        if not colon or not (port.isascii() and port.isdigit()) or len(port) > 5:
            name, port = entry, ""
        if port and int(port) != url.port:
            continue
        if ip is not None:
            if parse_ip(name) == ip:
                return True
            continue
        suffix = name.removeprefix("*").strip(".")
        if suffix and (host == suffix or host.endswith(f".{suffix}")):
            return True
    return False
