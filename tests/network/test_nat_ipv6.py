"""Paths where one side, or both, have only IPv6: without a translator, and through a NAT64."""

import re
from collections.abc import Iterator

import pytest

from network.test_nat import SERVERS, Report, ask_target, bring_up, up, wait_kind
from support.figures import Told
from support.hosts import why_no_namespaces
from support.nat import (
    CARRIER6,
    ENDPOINT_INSIDE6,
    FAR,
    GATEWAY_INSIDE6,
    SERVICES,
    SERVICES6,
    NatSite,
    behind_nat64,
    turn_server,
)

pytestmark = pytest.mark.timeout(400)  # on a loaded machine; a world is made within the first test


@pytest.mark.netns
def test_ipv6_only_meets_ipv4_only(report_logs: Report) -> None:
    """A TURN server and a proxy that have both families bring together hosts that have one each."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    site = NatSite(ipv4=True, ipv6=True)
    try:
        site.world.near.become("port-restricted")
        site.world.far.become("port-restricted")
        site.world.gateway.run("ip", "-4", "address", "flush", "dev", "gw0")
        site.world.endpoint.run("ip", "-6", "address", "flush", "dev", "ep0", "scope", "global")
        with site.turn(), site.proxy() as proxy:
            proxy = proxy.replace(SERVICES, f"[{SERVICES6}]")
            tunnel = site.nat_tunnel(
                {"servers": [turn_server(f"turn:[{SERVICES6}]")]},
                endpoint={"ice": {"servers": SERVERS}},
            )
            tunnel.gateway_settings["peers"][0]["proxy"] = proxy
            up(tunnel, report_logs, "relay")
    finally:
        site.close()


# --- IPv6 only --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world6() -> Iterator[NatSite]:
    if reason := why_no_namespaces():
        pytest.skip(reason)
    site = NatSite(ipv4=False, ipv6=True)
    try:
        with site.turn():
            yield site
    finally:
        site.close()


SERVERS6 = [{"urls": [f"stun:[{SERVICES6}]:3478"]}, turn_server(f"turn:[{SERVICES6}]:3478")]


@pytest.mark.netns
@pytest.mark.parametrize(("policy", "kind"), [("all", "host"), ("relay", "relay")])
def test_ipv6_only(policy: str, kind: str, world6: NatSite, report_logs: Report) -> None:
    tunnel = world6.nat_tunnel({"servers": SERVERS6, "policy": policy})
    url = f"http://[{ENDPOINT_INSIDE6}]:{tunnel.signaling_port}/"
    tunnel.gateway_settings["peers"][0]["url"] = url
    link = up(tunnel, report_logs, kind)
    assert link["path_family"] == "ipv6"
    warnings = re.findall(r".*links are made without it", tunnel.gateway.log_text())
    # On a busy machine, a server may be too late for a link.
    assert not [line for line in warnings if "no answer within" not in line]


@pytest.mark.netns
def test_behind_the_same_nat_of_ipv6(report_logs: Report) -> None:
    """Both have one public address, and their packets turn round at the NAT (hairpin)."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    site = NatSite(ipv4=False, ipv6=True)
    try:
        with site.turn(), site.proxy() as proxy:
            site.world.carrier_nat(GATEWAY_INSIDE6, ENDPOINT_INSIDE6, hairpin=True)
            tunnel = site.nat_tunnel({"servers": SERVERS6})
            peer = tunnel.gateway_settings["peers"][0]
            peer["url"] = f"http://[{ENDPOINT_INSIDE6}]:{tunnel.signaling_port}/"
            peer["proxy"] = proxy.replace(SERVICES, f"[{SERVICES6}]")
            link = up(tunnel, report_logs, "srflx")
    finally:
        site.close()
    assert link["path_family"] == "ipv6"
    assert CARRIER6 in link["path"].partition("->")[2]


# --- NAT64 --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world64() -> Iterator[NatSite]:
    """A gateway with IPv6 alone, behind a NAT64; an endpoint with IPv4 alone, behind a NAT."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    site = NatSite(ipv4=True, ipv6=True)
    try:
        world = site.world
        world.near.become("none")
        world.far.become("port-restricted")
        world.gateway.run("ip", "-4", "address", "flush", "dev", "gw0")
        world.endpoint.run("ip", "-6", "address", "flush", "dev", "ep0", "scope", "global")
        with site.turn(), world.nat64(site.directory):
            yield site
    finally:
        site.close()


@pytest.mark.netns
@pytest.mark.parametrize(
    ("policy", "kind", "family"), [("all", "prflx", "ipv6"), ("relay", "relay", "ipv4")]
)
def test_behind_nat64(
    policy: str, kind: str, family: str, world64: NatSite, report_logs: Report, told: Told
) -> None:
    """The endpoint's checks come to the gateway from an address that nobody has told it.

    A relayed path is named by the address that the server relays from, which is IPv4.
    """
    services, far = behind_nat64(SERVICES), behind_nat64(FAR)
    servers = [{"urls": [f"stun:[{services}]:3478"]}, turn_server(f"turn:[{services}]:3478")]
    tunnel = world64.nat_tunnel(
        {"servers": servers, "policy": policy}, endpoint={"ice": {"servers": SERVERS}}
    )
    url = f"http://[{far}]:{tunnel.signaling_port}/"
    tunnel.gateway_settings["peers"][0]["url"] = url
    try:
        link, seconds = bring_up(tunnel, report_logs)
        told(f"{link['path_kind']} after {seconds:.1f} s")
        ask_target(tunnel)
        link = wait_kind(tunnel, kind)
    finally:
        tunnel.stop()
    assert link["path_family"] == family
