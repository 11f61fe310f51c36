"""Hosts, ports and the SOCKS5 address field.

::

    +------+----------+----------+      ATYP 0x01: ADDR is 4 bytes, an IPv4 address
    | ATYP |   ADDR   |   PORT   |      ATYP 0x03: ADDR is [LEN:1][NAME], 1 to 255 bytes of name
    +------+----------+----------+      ATYP 0x04: ADDR is 16 bytes, an IPv6 address
    |  1   | Variable |    2     |      (RFC 1928 section 5; PORT in network order)
    +------+----------+----------+
"""

import ipaddress
import struct
from enum import IntEnum
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import idna

from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import RemoteProtocolError, Reply

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Buffer: TypeAlias = bytes | bytearray | memoryview

_PORT = struct.Struct("!H")
CACHE_ENTRIES = 4096
"""Addresses whose text or encoding is kept, for each direction; process-wide, least recent out."""

NAME_MAX = 255
"""Longest host name that the one-byte length field can carry, in bytes."""


class AddressType(IntEnum):
    """ATYP (RFC 1928 section 5)."""

    IPV4 = 0x01
    DOMAIN = 0x03
    IPV6 = 0x04


class HostPort(NamedTuple):
    """A destination or source: `host` is canonical text, `port` 0 to 65535.

    Canonical text is what :func:`canonical_host` gives: an IP literal without brackets in its
    shortest form, or a lower-case A-label name without a final dot.
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


UNSPECIFIED = HostPort("0.0.0.0", 0)  # noqa: S104 - an address field with nothing to say, never bound


@lru_cache(CACHE_ENTRIES)
def parse_ip(text: str) -> IPAddress | None:
    """Returns the address that `text` is a literal of, or None if it is a name.

    Accepts IPv6 in brackets (`[2001:db8::1]`), which clients send as a "domain". A zone index
    (`fe80::1%eth0`) is refused as a literal: it has no meaning on another host.
    """
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
        if ":" not in text:
            return None
    if "%" in text:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def canonical_host(text: str) -> str:
    """Returns the canonical form of a host that a user or a client wrote.

    An IP literal (also in brackets) becomes its shortest form; a name becomes lower-case A-labels
    (RFC 5890) without a final dot. Underscores are kept: SRV owners and Windows hosts use them.

    Raises :class:`ValueError` with a sentence about what is wrong with it.
    """
    address = parse_ip(text)
    if address is not None:
        return str(address)
    name = text.removesuffix(".")
    if not name:
        raise ValueError("the host name is empty")
    shown = clip(text)
    if len(name) > NAME_MAX:  # before IDNA, whose work grows faster than the name does
        raise ValueError(f"the host name is {len(name)} characters long; at most {NAME_MAX} fit")
    if not name.isascii():
        try:
            name = idna.encode(name, uts46=True).decode("ascii")  # at most 253 bytes, or an error
        except idna.IDNAError as error:
            raise ValueError(
                f"{shown!r} is no valid internationalized name: {clip(error)}"
            ) from None
    name = name.lower()
    for label in name.split("."):
        if not label:
            raise ValueError(f"{shown!r} has an empty label")
        if len(label) > 63:
            raise ValueError(f"{shown!r} has a label longer than 63 bytes")
    if not all(c.isalnum() or c in "-._" for c in name):
        raise ValueError(f"{shown!r} has a character that no host name can have")
    return name


def parse_host_port(text: str) -> HostPort:
    """Parse `host:port` or `[v6]:port` as users write it in configuration.

    Raises :class:`ValueError` with a sentence about what is wrong with it.
    """
    shown = clip(text)
    host, colon, port_text = text.rpartition(":")
    if not colon or not host:
        raise ValueError(f"{shown!r} is not HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{shown!r}: an IPv6 address must be in brackets, as in [::1]:1080")
    digits = port_text.isascii() and port_text.isdigit()
    if not digits or len(port_text) > 5 or int(port_text) > 65535:
        raise ValueError(f"{shown!r}: {clip(port_text)!r} is not a port (0 to 65535)")
    return HostPort(canonical_host(host), int(port_text))


@lru_cache(CACHE_ENTRIES)
def encode_address(address: HostPort) -> bytes:
    """Encode ATYP, ADDR and PORT. A host that is no IP literal goes out as a domain name."""
    host, port = address
    ip = parse_ip(host)
    if ip is None:
        name = host.encode("ascii")
        if not 1 <= len(name) <= NAME_MAX:
            raise ValueError(f"a name of {len(name)} bytes does not fit an address field")
        return b"\x03" + bytes((len(name),)) + name + _PORT.pack(port)
    return (b"\x01" if ip.version == 4 else b"\x04") + ip.packed + _PORT.pack(port)


def address_length(data: Buffer, offset: int) -> int | None:
    """Returns the length in bytes of the address field that starts at `offset`.

    None if `data` ends before the length can be told. Raises :class:`RemoteProtocolError` with
    reply 0x08 for an unknown ATYP.
    """
    if len(data) <= offset:
        return None
    match data[offset]:
        case AddressType.IPV4:
            return 7
        case AddressType.IPV6:
            return 19
        case AddressType.DOMAIN:
            if len(data) <= offset + 1:
                return None
            return 4 + data[offset + 1]
        case other:
            raise RemoteProtocolError(
                f"unknown address type 0x{other:02x}",
                kind="address-type",
                reply=Reply.ADDRESS_TYPE_NOT_SUPPORTED,
            )


def decode_address(data: Buffer, offset: int = 0) -> tuple[HostPort, int]:
    """Decodes the address field at `offset`; returns it and the offset of what follows.

    A domain that is an IP literal (also IPv6, also in brackets) is treated as that address.
    Raises :class:`RemoteProtocolError` if the field is cut short, has an unknown ATYP (reply 0x08)
    or a name that cannot be one.
    """
    length = address_length(data, offset)
    if length is None or len(data) < offset + length:
        raise RemoteProtocolError("the address field is cut short", kind="short-address")
    end = offset + length
    (port,) = _PORT.unpack_from(data, end - 2)
    kind = data[offset]
    if kind == AddressType.IPV4:
        return HostPort(".".join(map(str, data[offset + 1 : end - 2])), port), end
    if kind == AddressType.IPV6:
        return HostPort(str(ipaddress.IPv6Address(bytes(data[offset + 1 : end - 2]))), port), end
    return HostPort(decode_name(data[offset + 2 : end - 2]), port), end


def decode_name(raw: Buffer) -> str:
    """Returns the canonical host for the bytes of a domain field.

    Raises :class:`RemoteProtocolError` for what cannot be a host; clients do send UTF-8 names, and
    those become A-labels.
    """
    try:
        return canonical_host(bytes(raw).decode("utf-8"))
    except ValueError as error:  # UnicodeDecodeError is one
        raise RemoteProtocolError(f"bad host name: {error}", kind="bad-name") from None
