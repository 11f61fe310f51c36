"""The texts of the `[ice]` table: URLs of STUN and TURN servers, and a range of ports. Sans-IO.

Both functions raise :class:`ValueError` with words that fit behind the name of the setting.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final, Literal

# RFC 7064 section 3.1 and RFC 7065 section 3.1; an IPv6 address stands in brackets.
_URL = re.compile(
    r"(?P<scheme>stuns?|turns?):(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:/?@\s]+)(:(?P<port>[0-9]{1,5}))?"
    r"(\?transport=(?P<transport>[A-Za-z]+))?"
)
_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")

STUN_PORT: Final = 3478
TURN_TLS_PORT: Final = 5349
"""Default ports: RFC 7064 section 3.2, RFC 7065 section 3.2."""

ICE_URLS_MAX: Final = 8
"""Most URLs of STUN and TURN servers: all of them are asked for each link, side by side."""


@dataclass(frozen=True, slots=True)
class IceUrl:
    """One URL of a STUN or TURN server. `host`: a name, or an address without brackets."""

    scheme: Literal["stun", "turn", "turns"]
    host: str
    port: int
    transport: Literal["udp", "tcp"]

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        transport = f"?transport={self.transport}" if self.scheme == "turn" else ""
        return f"{self.scheme}:{host}:{self.port}{transport}"


def parse_ice_url(text: str) -> IceUrl:
    """Returns the parts of a URL. What this program cannot use is refused, with the reason."""
    match = _URL.fullmatch(text)
    if match is None:
        raise ValueError("is not of the form stun:HOST:PORT or turn:HOST:PORT?transport=udp")
    scheme, host, transport = match["scheme"], match["host"], match["transport"]
    if scheme == "stuns":
        raise ValueError("is STUN over TLS, which finds no address for UDP; use stun:")
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            raise ValueError(f"has {host!r} in brackets, which is not an IPv6 address") from None
    port = int(match["port"] or (TURN_TLS_PORT if scheme == "turns" else STUN_PORT))
    if not 1 <= port <= 65535:
        raise ValueError(f"names port {port}; a port is a number from 1 to 65535")
    if scheme == "stun":
        if transport is not None:
            raise ValueError("has a transport, which a stun: URL cannot have (RFC 7064)")
        return IceUrl("stun", host, port, "udp")
    if transport not in {None, "udp", "tcp"}:
        raise ValueError(f"has the unknown transport {transport!r}; there are udp and tcp")
    if scheme == "turns":
        if transport == "udp":
            raise ValueError("is TURN over DTLS, which is not supported; use transport=tcp")
        return IceUrl("turns", host, port, "tcp")
    return IceUrl("turn", host, port, "tcp" if transport == "tcp" else "udp")


def parse_udp_ports(text: str) -> tuple[int, int] | None:
    """Returns the lowest and highest port of a range such as `40000-40100`; None if it is empty."""
    if not text:
        return None
    match = _RANGE.fullmatch(text)
    if match is None:
        raise ValueError(f'{text!r} is not a range of ports such as "40000-40100"')
    low, high = int(match[1]), int(match[2] or match[1])
    if not 1 <= low <= 65535 or not 1 <= high <= 65535:
        raise ValueError(f"{text!r} has a port outside of 1 to 65535")
    if low > high:
        raise ValueError(f"{text!r} ends before it begins")
    return low, high
