"""The path that a tunnel's link has taken, and ways to break it."""

import contextlib
import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest

from support.hosts import ThreeHosts, why_no_namespaces
from support.processes import wait_until
from support.slow_path import ENDPOINT_ICE, GATEWAY_ICE, SlowPath
from support.tunnels import Site, Tunnel

_PATH = re.compile(r"(\S+) port ([0-9]+) -> (\S+) port ([0-9]+)")


@contextlib.contextmanager
def distant_tunnel(delay: float) -> Iterator[Tunnel]:
    """A tunnel on hosts of its own, over a path with `delay` milliseconds each way and no bottleneck.

    Skips the test where there are no network namespaces.
    """
    if reason := why_no_namespaces():
        pytest.skip(reason)
    with contextlib.closing(Site()) as site:
        hosts = site.hosts
        assert isinstance(hosts, ThreeHosts)
        with (
            SlowPath(hosts, rate=0, delay=delay, queue=10_000),
            site.tunnel(GATEWAY_ICE, ENDPOINT_ICE, foreground=True).running() as tunnel,
        ):
            yield tunnel


def path(tunnel: Tunnel) -> tuple[str, int, int]:
    """The gateway's address, its port and the endpoint's in the path that is used."""
    for link in tunnel.gateway.control("status")["links"]:
        match = _PATH.match(link["path"] or "")
        if match is not None and link["state"] == "up":
            return match[1], int(match[2]), int(match[4])
    return "", 0, 0


def settled_path(tunnel: Tunnel, *, other_than: tuple[int, int] = (0, 0)) -> tuple[str, int, int]:
    """The same of the gateway's only link, once it is up, and once its ports are others than those.

    While a link takes over from another one, both are there.
    """

    def settled() -> tuple[str, int, int] | None:
        links = tunnel.gateway.control("status")["links"]
        found = path(tunnel)
        return found if len(links) == 1 and found[1:] not in {(0, 0), other_than} else None

    return wait_until(settled, f"one link, with other ports than {other_than}", timeout=90)


@contextlib.contextmanager
def sooner_than_silence(tunnel: Tunnel) -> Iterator[None]:
    """The gateway's link is replaced in this block, and not because nothing was heard any more.

    That takes 15 s; a test does not look at a clock to tell the one from the other.
    """

    def counted(**labels: str) -> float:
        return tunnel.metric("link_reconnects_total", **labels)

    before, silent = counted(), counted(cause="silence")
    yield
    wait_until(lambda: counted() > before, "another link in the metrics")
    assert counted(cause="silence") == silent


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
