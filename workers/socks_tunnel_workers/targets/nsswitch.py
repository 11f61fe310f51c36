"""Reads where this host looks names up: the `hosts` line of nsswitch.conf(5).

The resolver reads /etc/hosts and asks name servers itself. Every other source (LDAP, NIS, sssd,
mDNS, winbind, libvirt, systemd's machines) is a plugin of the C library, which only `getaddrinfo`
can call::

    hosts: files mdns4_minimal [NOTFOUND=return] dns      mDNS has names below .local, nothing else
    hosts: files sss dns                                  sssd is asked before the name servers
    hosts: files resolve [!UNAVAIL=return] myhostname dns resolve is systemd-resolved: DNS as well

So the line becomes a plan of at most three steps for each kind of name, in the order of the line.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final

PATH: Final = Path("/etc/nsswitch.conf")

_DNS: Final = frozenset({"dns", "resolve"})
"""`resolve` is systemd-resolved, which is also a name server, and resolv.conf names it."""

_LOCAL: Final = frozenset({"myhostname", "mymachines"})
"""Plugins of systemd for this host and its containers, whose names have one label."""

_MDNS: Final = re.compile(r"mdns[46]?(_minimal)?")
_ACTION: Final = re.compile(r"\[[^\]]*\]")
_HOSTS: Final = re.compile(r"^\s*hosts\s*:([^#\n]*)", re.MULTILINE)


class Source(Enum):
    """A source of the addresses of a name."""

    FILES = "files"
    """/etc/hosts, read by :mod:`socks_tunnel_workers.targets.hostsfile`."""
    DNS = "dns"
    """The name servers of resolv.conf, asked by c-ares."""
    SYSTEM = "system"
    """`getaddrinfo`, in a thread: sources that only the C library knows."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The order in which the sources are asked, until one has the name."""

    names: tuple[Source, ...]
    """For names of several labels, except those of multicast DNS."""
    single: tuple[Source, ...]
    """For names of one label."""
    local: tuple[Source, ...]
    """For names below `.local`."""

    def steps(self, name: str) -> tuple[Source, ...]:
        """Returns the sources for a canonical name."""
        if "." not in name:
            return self.single
        return self.local if name.endswith(".local") else self.names


_FILES_DNS: Final = (Source.FILES, Source.DNS)

DEFAULT: Final = Plan(_FILES_DNS, _FILES_DNS, _FILES_DNS)
"""The plan of glibc if there is no `hosts` line ("files dns", nss/nsswitch.c)."""


def parse(text: str) -> Plan:
    """Returns the plan for the text of an nsswitch.conf.

    Actions in brackets are not interpreted: if a source lacks a name the next one is asked, as by
    default. The only exception is the common `mdns4_minimal [NOTFOUND=return]`: with it, names
    below `.local` are only looked up on the local network (RFC 6762 section 3).
    """
    line = _HOSTS.search(text)
    if line is None:
        return DEFAULT
    names: list[Source] = []
    single: list[Source] = []
    local: list[Source] = []
    mdns_last = mdns_ends = False
    for service in _ACTION.sub(lambda action: f" {_squeezed(action[0])} ", line[1]).split():
        if service.startswith("["):
            mdns_ends = mdns_ends or (mdns_last and "notfound=return" in service)
            continue
        mdns_last = _MDNS.fullmatch(service) is not None
        source = _source(service)
        if not mdns_last:
            _append(single, source)
            if service not in _LOCAL:
                _append(names, source)
        if not mdns_ends and service not in _LOCAL:
            _append(local, source)
    return Plan(*(tuple(steps) or _FILES_DNS for steps in (names, single, local)))


def _squeezed(action: str) -> str:
    return "".join(action.lower().split())


def _source(service: str) -> Source:
    if service == "files":
        return Source.FILES
    return Source.DNS if service in _DNS else Source.SYSTEM


def _append(steps: list[Source], source: Source) -> None:
    """Adds a step, unless it is there. One call of getaddrinfo asks all plugins."""
    if source not in steps:
        steps.append(source)


def read(path: Path = PATH) -> Plan:
    """Returns the plan of this host. Raises :class:`OSError` if the file cannot be read."""
    try:
        return parse(path.read_text("utf-8", "replace"))
    except FileNotFoundError:
        return DEFAULT
