"""Two hosts that meet at a rendezvous service, and lose their network together with their link.

The connection of one of them to the service dies without a word. That must not keep the flows waiting
longer than the link does.
"""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Literal

import pytest

from support.corporate import Server
from support.figures import Told
from support.hosts import ENDPOINT_ADDRESS, GATEWAY_ADDRESS
from support.load import Load
from support.paths import settled_path
from support.processes import wait_until
from support.tunnels import Site, Tunnel

PORT = 8443
OTHER_ADDRESS = "10.77.0.7"

SILENT_FOR = 20.0
"""Seconds without a path: more than the 15 s after which both sides give their link up."""

RECOVERED_MAX = 45.0
"""Seconds; a loose bound on a loaded machine. What it really took is printed."""

pytestmark = [pytest.mark.timeout(600), pytest.mark.netns]


@pytest.fixture(scope="module")
def site(make_site: Callable[[], Site]) -> Iterator[Site]:
    """Hosts of their own, over IPv4 alone."""
    made = make_site()
    with contextlib.closing(made):
        made.hosts.gateway.run("ip", "-6", "address", "flush", "dev", "gw0", "scope", "global")
        made.hosts.endpoint.run("ip", "-6", "address", "flush", "dev", "ep0", "scope", "global")
        yield made


@contextlib.contextmanager
def meeting(site: Site, at: Literal["gateway", "endpoint"]) -> Iterator[Tunnel]:
    """A tunnel whose sides meet at a service on the host of one of them."""
    address = GATEWAY_ADDRESS if at == "gateway" else ENDPOINT_ADDRESS
    tunnel = site.tunnel()
    rendezvous = f"ws://{address}:{PORT}/"
    peer = tunnel.gateway_settings["peers"][0]
    del peer["url"]
    peer["rendezvous"] = rendezvous
    tunnel.endpoint_settings["signaling"] = {"rendezvous": rendezvous}
    config = site.directory / "rendezvous.toml"
    config.write_text(f'listen = "{address}:{PORT}"\nclients = "any"\n')
    command = (sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", config)
    service = Server("rendezvous", site.directory, getattr(site.hosts, at), command, None, None)
    try:
        service.wait_bound("tcp", PORT)
        try:
            tunnel.start_endpoint()
            tunnel.start_gateway()
            tunnel.wait_linked()
            yield tunnel
            for daemon in tunnel.daemons:
                daemon.assert_clean()
        finally:
            print(tunnel.logs())
            tunnel.stop()
    finally:
        service.stop()


def test_the_gateway_gets_another_address(site: Site, told: Told) -> None:
    host = site.hosts.gateway
    with meeting(site, "endpoint") as tunnel, Load(tunnel) as load:
        host.run("ip", "address", "del", f"{GATEWAY_ADDRESS}/24", "dev", "gw0")
        host.run("ip", "address", "add", f"{OTHER_ADDRESS}/24", "dev", "gw0")
        try:
            took = load.recovered_after(time.monotonic() + 0.05)
            load.ended_as_wanted()
            wait_until(
                lambda: settled_path(tunnel)[0] == OTHER_ADDRESS, "a path from it", timeout=90
            )
        finally:
            host.run("ip", "address", "del", f"{OTHER_ADDRESS}/24", "dev", "gw0")
            host.run("ip", "address", "add", f"{GATEWAY_ADDRESS}/24", "dev", "gw0")
    told(f"by a rendezvous, flows went on within {took:.2f} s at another address")
    assert took < RECOVERED_MAX


def test_the_path_is_gone_until_both_have_given_up(site: Site, told: Told) -> None:
    """The endpoint's connection to the service dies, and only the endpoint can find that out."""
    with meeting(site, "gateway") as tunnel, Load(tunnel) as load:
        site.hosts.cut()
        try:
            cut = time.monotonic()
            wait_until(lambda: not tunnel.linked(), "the end of the link", timeout=90)
            load.stop.wait(SILENT_FOR - (time.monotonic() - cut))
        finally:
            site.hosts.mend()
        took = load.recovered_after(time.monotonic())
        load.ended_as_wanted()
    told(f"by a rendezvous, flows went on within {took:.2f} s after a cut")
    assert took < RECOVERED_MAX
