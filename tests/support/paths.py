"""The path that a tunnel's link has taken, and ways to break it."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Literal

from support.tunnels import Tunnel

_PATH = re.compile(r"(\S+) port ([0-9]+) -> (\S+) port ([0-9]+)")


def path(tunnel: Tunnel) -> tuple[str, int, int]:
    """The gateway's address, its port and the endpoint's in the path that is used."""
    for link in tunnel.gateway.control("status")["links"]:
        match = _PATH.match(link["path"] or "")
        if match is not None and link["state"] == "up":
            return match[1], int(match[2]), int(match[4])
    return "", 0, 0


@contextlib.contextmanager
def one_way_blocked(
    hosts: Any, sender: Literal["gateway", "endpoint"], ours: int, theirs: int
) -> Iterator[None]:
    """Drops what one side sends on a pair of ports, the gateway's and the endpoint's, silently."""
    source, destination = (ours, theirs) if sender == "gateway" else (theirs, ours)
    host = getattr(hosts, sender)
    host.run(
        "nft",
        "add table inet oneway; "
        "add chain inet oneway out { type filter hook output priority 0; }; "
        f"add rule inet oneway out udp sport {source} udp dport {destination} drop",
    )
    try:
        yield
    finally:
        host.run("nft", "delete table inet oneway")
