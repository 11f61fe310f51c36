"""Reads /etc/hosts: names and addresses that the administrator of this host has set, hosts(5)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

from socks_tunnel.protocol.addresses import IPAddress, canonical_host

PATH: Final = Path("/etc/hosts")

LINES_PER_TURN: Final = 1000
"""Lines that are read in one turn of the event loop. Files that block advertisements have 200,000
lines."""

_LOCALHOST: Final[tuple[IPAddress, ...]] = (IPv6Address("::1"), IPv4Address("127.0.0.1"))


@dataclass(slots=True)
class Hosts:
    """The contents of the file."""

    _addresses: dict[str, list[IPAddress]] = field(default_factory=dict)
    _names: dict[IPAddress, list[str]] = field(default_factory=dict)

    def addresses(self, name: str) -> tuple[IPAddress, ...]:
        """Returns the addresses of a canonical name, in the order of the file.

        `localhost` and names below it are always loopback (RFC 6761 section 6.3).
        """
        found = self._addresses.get(name)
        if found is not None:
            return tuple(found)
        return _LOCALHOST if name == "localhost" or name.endswith(".localhost") else ()

    def names(self, address: IPAddress) -> tuple[str, ...]:
        """Returns the names of an address, the canonical one first."""
        return tuple(self._names.get(address, ()))

    def add_line(self, line: str) -> None:
        """Takes one line. Skips what cannot be parsed, as the C library does."""
        fields = line.partition("#")[0].split()
        if len(fields) < 2:
            return
        try:
            address = ip_address(fields[0].partition("%")[0])
        except ValueError:
            return
        for text in fields[1:]:
            try:
                name = canonical_host(text)
            except ValueError:
                continue
            addresses = self._addresses.setdefault(name, [])
            if address not in addresses:
                addresses.append(address)
            names = self._names.setdefault(address, [])
            if name not in names[:16]:
                names.append(name)


def reading(path: Path, hosts: Hosts) -> Iterator[None]:
    """Reads the file into `hosts`, and yields after each :data:`LINES_PER_TURN` lines.

    A file that does not exist has no names. Raises :class:`OSError` if it cannot be read.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                hosts.add_line(line)
                if number % LINES_PER_TURN == 0:
                    yield
    except FileNotFoundError:
        return
