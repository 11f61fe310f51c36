"""Real NATs: which path is taken through which pair of them, and how soon it is there.

Each cell is printed at the end of the run, with the seconds from the gateway's start to its link, and
those to the path that theory allows where another one came first.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from support.certificates import Authority
from support.figures import Told
from support.hosts import why_no_namespaces
from support.load import Load
from support.nat import (
    CARRIER,
    FAR,
    GATEWAY_INSIDE,
    NEAR,
    PROXY_USER,
    SERVICES,
    Nat,
    NatSite,
    turn_server,
)
from support.processes import wait_until
from support.tunnels import Tunnel

NATS: tuple[Nat, ...] = ("full-cone", "address-restricted", "port-restricted", "symmetric")
BOTH: tuple[Nat, ...] = ("none", *NATS)
CELLS: list[tuple[Nat, Nat]] = [(near, far) for near in BOTH for far in BOTH]

# RFC 4787: a symmetric NAT shows each peer another port, so the other side can only learn of it from
# the check that arrives (prflx), and a filter that wants the port to be known never lets that in.
EXPECTED = {
    (near, far): "relay"
    if "symmetric" in {near, far} and {near, far} <= {"symmetric", "port-restricted"}
    else "prflx"
    if "symmetric" in {near, far}
    else "host"
    if near == far == "none"
    else "srflx"
    for near, far in CELLS
}

MOVED_MAX = 240.0
"""Seconds; a loose bound of the time until a direct path that appears later is in use."""

STALLED_MAX = 30.0
"""Seconds; a loose bound on a loaded machine. What it really took is printed."""

SERVERS = [{"urls": [f"stun:{SERVICES}:3478"]}, turn_server(f"turn:{SERVICES}:3478")]

pytestmark = pytest.mark.timeout(400)  # on a loaded machine; a world is made within the first test


@pytest.fixture(scope="module")
def world() -> Iterator[NatSite]:
    if reason := why_no_namespaces():
        pytest.skip(reason)
    site = NatSite()
    try:
        with site.turn():
            yield site
    finally:
        site.close()


Report = Callable[[Tunnel], None]


def bring_up(tunnel: Tunnel, report: Report) -> tuple[dict[str, Any], float]:
    """Start both sides; the gateway's link once it is up, and the seconds from the gateway's start."""
    report(tunnel)
    tunnel.start_endpoint()
    started = time.monotonic()
    tunnel.start_gateway()
    tunnel.wait_linked()
    seconds = time.monotonic() - started
    rows = wait_until(lambda: rows_up(tunnel), "a link that is up")
    return rows[0], seconds


def rows_up(tunnel: Tunnel) -> list[dict[str, Any]]:
    """The gateway's links that are up; two while one takes over from another."""
    rows: list[dict[str, Any]] = tunnel.gateway.control("status")["links"]
    return [row for row in rows if row["state"] == "up"]


def wait_kind(tunnel: Tunnel, kind: str) -> dict[str, Any]:
    """The gateway's only link, once its path is of this kind: a better one is moved to when it is found."""

    def only() -> dict[str, Any] | None:
        rows = rows_up(tunnel)
        return rows[0] if len(rows) == 1 and rows[0]["path_kind"] == kind else None

    return wait_until(only, f"a path of kind {kind}", timeout=MOVED_MAX)


def ask_target(tunnel: Tunnel) -> None:
    """Use the link: a megabyte through it."""
    with tunnel.connect("http") as sock:
        sock.sendall(b"GET /bytes/1000000 HTTP/1.0\r\n\r\n")
        received = 0
        while piece := sock.recv(65_536):
            received += len(piece)
        assert received > 1_000_000


@pytest.mark.netns
@pytest.mark.parametrize(("near", "far"), CELLS)
def test_every_pair_of_nats(
    near: Nat, far: Nat, fresh: NatSite, report_logs: Report, told: Told
) -> None:
    fresh.world.near.become(near)
    fresh.world.far.become(far)
    fresh.world.route_insides(near=near == "none", far=far == "none")
    tunnel = fresh.nat_tunnel({"servers": SERVERS})
    expected = EXPECTED[near, far]
    try:
        started = time.monotonic()
        link, seconds = bring_up(tunnel, report_logs)
        told(f"{link['path_kind']} after {seconds:.1f} s")
        ask_target(tunnel)
        if link["path_kind"] != expected:
            assert link["path_kind"] == "relay"
            link = wait_kind(tunnel, expected)
            told(f"{expected} {time.monotonic() - started:.1f} s after the endpoint's start")
            ask_target(tunnel)
    finally:
        tunnel.stop()
    assert link["path_kind"] == expected, link
    assert link["path_family"] == "ipv4"


UDP_BLOCKED = "meta l4proto udp drop"
ONLY_THE_PROXY = f"iifname lan ip daddr {SERVICES} tcp dport 3128 accept; iifname lan drop"


@pytest.fixture
def fresh(world: NatSite) -> NatSite:
    """The world with the usual NAT on both sides, and nothing else in the way."""
    world.world.near.become("port-restricted")
    world.world.far.become("port-restricted")
    world.world.core.run("nft", "flush", "ruleset")
    world.world.route_insides(near=False, far=False)
    return world


def up(tunnel: Tunnel, report: Report, kind: str) -> dict[str, Any]:
    """Start both sides, use the link, end it in order; the link as the gateway described it.

    It is of that kind, or moves to such a path: where a peer was slow, a relayed one may be the first.
    """
    try:
        bring_up(tunnel, report)
        link = wait_kind(tunnel, kind)
        ask_target(tunnel)
    finally:
        tunnel.stop()
    return link


@pytest.mark.netns
def test_a_direct_path_that_appears_later_is_moved_to_without_a_stall(
    fresh: NatSite, report_logs: Report, told: Told
) -> None:
    """A firewall between the hosts lets UDP through from one moment on."""
    core = fresh.world.core
    core.run(
        "nft",
        "add table ip between; "
        "add chain ip between on { type filter hook forward priority 0; }; "
        f"add rule ip between on ip saddr {NEAR} ip daddr {FAR} meta l4proto udp drop; "
        f"add rule ip between on ip saddr {FAR} ip daddr {NEAR} meta l4proto udp drop",
    )
    tunnel = fresh.nat_tunnel({"servers": SERVERS})
    try:
        link, _ = bring_up(tunnel, report_logs)
        assert link["path_kind"] == "relay"
        with Load(tunnel) as load:
            core.run("nft", "delete table ip between")
            opened = time.monotonic()
            wait_kind(tunnel, "srflx")
            took = time.monotonic() - opened
            load.goes_on()
            stall = load.stalled_since(opened)
            load.ended_as_wanted()
        told(f"moved to {took:.1f} s after the path was open")
        told(f"no answer to a small message for at most {stall * 1000:.0f} ms")
        assert stall < STALLED_MAX
    finally:
        tunnel.stop()
    assert "flows wait for the next link" not in tunnel.gateway.log_text()


@pytest.mark.netns
def test_a_relayed_path_stays_where_no_direct_one_appears(
    fresh: NatSite, report_logs: Report
) -> None:
    """The looks for a direct path beside it disturb nobody, and no side calls them failures."""
    for router in (fresh.world.near, fresh.world.far):
        router.become("symmetric")
    tunnel = fresh.nat_tunnel({"servers": SERVERS})
    try:
        link, _ = bring_up(tunnel, report_logs)
        assert link["path_kind"] == "relay"
        with tunnel.connect("echo") as sock:
            tunnel.gateway.wait_log(
                r"link office stays relayed: .*; looking again later", timeout=MOVED_MAX
            )
            sock.sendall(b"still here")
            assert sock.recv(100) == b"still here"
        wait_until(
            lambda: tunnel.metric("link_events_total", outcome="vain") >= 1, "it in the metrics"
        )
        assert tunnel.metric("link_events_total", outcome="failed") == 0
    finally:
        tunnel.stop()
    assert "flows wait for the next link" not in tunnel.gateway.log_text()
    for daemon in tunnel.daemons:
        warnings = [line for line in daemon.log_text().splitlines() if "WARNING" in line]
        # A server on a busy machine may be too late for a link, which is said of the server.
        warnings = [line for line in warnings if "no answer within" not in line]
        assert not [line for line in warnings if "link" in line or "ICE" in line]


@pytest.mark.netns
def test_two_nats_and_a_range_of_ports(fresh: NatSite, report_logs: Report) -> None:
    """As where a firewall lets only these through. Linux keeps a port that is free outside."""
    ports = range(40_000, 40_010)
    for router in (fresh.world.near, fresh.world.far):
        router.become(
            "port-restricted",
            f"oifname wan meta l4proto udp udp sport != {ports[0]}-{ports[-1]} drop",
        )
    ice = {"servers": SERVERS, "udp_ports": f"{ports[0]}-{ports[-1]}"}
    link = up(fresh.nat_tunnel(ice), report_logs, "srflx")
    found = re.findall(r" port (\d+)", link["path"])
    assert len(found) == 2
    assert set(map(int, found)) <= set(ports), link


@pytest.mark.netns
def test_behind_two_nats(fresh: NatSite, report_logs: Report) -> None:
    fresh.world.carrier_nat(NEAR)
    up(fresh.nat_tunnel({"servers": SERVERS}), report_logs, "srflx")


@pytest.mark.netns
def test_behind_the_same_nat(fresh: NatSite, report_logs: Report) -> None:
    """Both have the same public address, and their packets turn round at the NAT (hairpin)."""
    fresh.world.carrier_nat(NEAR, FAR, hairpin=True)
    link = up(fresh.nat_tunnel({"servers": SERVERS}), report_logs, "srflx")
    assert CARRIER in link["path"].partition("->")[2]


@pytest.mark.netns
def test_relay_by_choice_hides_the_addresses(fresh: NatSite, report_logs: Report) -> None:
    tunnel = fresh.nat_tunnel(
        {"servers": SERVERS, "policy": "relay"}, endpoint={"log": {"level": "debug"}}
    )
    link = up(tunnel, report_logs, "relay")
    assert link["path"].startswith(f"{SERVICES} port ")
    tunnel.endpoint.wait_log("a=candidate")
    offered = [line for line in tunnel.endpoint.log_text().splitlines() if "a=candidate" in line]
    assert not [line for line in offered if GATEWAY_INSIDE in line]


@pytest.mark.netns
@pytest.mark.parametrize("url", [f"turn:{SERVICES}:3478?transport=tcp", f"turns:{SERVICES}:443"])
def test_where_udp_is_blocked(url: str, secured: Path, fresh: NatSite, report_logs: Report) -> None:
    fresh.world.near.become("port-restricted", UDP_BLOCKED)
    ice: dict[str, Any] = {"servers": [turn_server(url)]}
    if url.startswith("turns:"):
        ice["tls_ca"] = str(secured)
    up(fresh.nat_tunnel(ice), report_logs, "relay")


@pytest.mark.netns
def test_where_only_a_proxy_leads_out(secured: Path, fresh: NatSite, report_logs: Report) -> None:
    """Signalling and TURN over TLS go through CONNECT with Basic authentication."""
    fresh.world.near.become("port-restricted", ONLY_THE_PROXY)
    ice = {"servers": [turn_server(f"turns:{SERVICES}:443")], "tls_ca": str(secured)}
    with fresh.proxy() as proxy:
        tunnel = fresh.nat_tunnel(ice, gateway={"ice": {**ice, "proxy": proxy}})
        tunnel.gateway_settings["peers"][0]["proxy"] = proxy
        up(tunnel, report_logs, "relay")
    assert "p@ss" not in tunnel.gateway.log_text()


@pytest.mark.netns
def test_a_proxy_that_refuses_is_named(secured: Path, fresh: NatSite, report_logs: Report) -> None:
    fresh.world.near.become("port-restricted", ONLY_THE_PROXY)
    ice = {"servers": [turn_server(f"turns:{SERVICES}:443")], "tls_ca": str(secured)}
    with fresh.proxy() as proxy:
        wrong = proxy.replace(PROXY_USER, "nobody")
        tunnel = fresh.nat_tunnel(ice, gateway={"ice": {**ice, "proxy": wrong, "policy": "relay"}})
        report_logs(tunnel)
        try:
            tunnel.start_gateway().wait_log(
                r"no ICE candidate can be made: TURN server turns:\S+: the proxy 198\.18\.1\.2:3128 "
                r"refuses the user name or password \(407\)"
            )
        finally:
            tunnel.stop()
    assert "p@ss" not in tunnel.gateway.log_text()


@pytest.mark.netns
def test_a_server_of_a_strange_authority_is_named(
    secured: Path, fresh: NatSite, report_logs: Report
) -> None:
    tunnel = fresh.nat_tunnel(
        {"servers": [turn_server(f"turns:{SERVICES}:443")], "policy": "relay"}
    )
    report_logs(tunnel)
    try:
        tunnel.start_gateway().wait_log(
            r"TURN server turns:\S+: TLS fails: unable to get local issuer"
        )
    finally:
        tunnel.stop()


@pytest.mark.netns
def test_a_wrong_credential_is_named(fresh: NatSite, report_logs: Report) -> None:
    server = {**turn_server(f"turn:{SERVICES}:3478"), "credential": "wrong"}
    tunnel = fresh.nat_tunnel({"servers": [server], "policy": "relay"})
    report_logs(tunnel)
    try:
        tunnel.start_gateway().wait_log(
            r"it refuses the user name 'alice' or the credential \(401\)"
        )
    finally:
        tunnel.stop()
    assert "wrong" not in tunnel.gateway.log_text()


@pytest.mark.netns
def test_a_dead_server_before_a_live_one(fresh: NatSite, report_logs: Report) -> None:
    """The second STUN server is asked too; each dead one costs half a second, and one warning later."""
    dead = [{"urls": ["stun:198.18.1.77"]}, turn_server("turn:198.18.1.78")]
    tunnel = fresh.nat_tunnel({"servers": [*dead, SERVERS[0]]})
    try:
        link, _ = bring_up(tunnel, report_logs)
        ask_target(tunnel)
        for side in (tunnel.gateway, tunnel.endpoint):
            for server in (
                r"STUN server stun:198\.18\.1\.77:3478",
                r"TURN server turn:198\.18\.1\.78:3478",
            ):
                warning = rf"{server}\S*: (.*); links are made without it"
                side.wait_log(warning, timeout=90)
                # A later link may fail at it in another way, which is said too.
                said = re.findall(warning, side.log_text())
                assert all(one != after for one, after in itertools.pairwise(said)), said
    finally:
        tunnel.stop()
    assert link["path_kind"] == "srflx"


@pytest.fixture(scope="module")
def secured(world: NatSite) -> Iterator[Path]:
    """coturn with TLS on port 443; the file of its private authority."""
    authority = Authority("Relays")
    issued = authority.issue(SERVICES)
    folder = world.directory
    (folder / "turn.pem").write_text(issued.certificate)
    (folder / "turn.key").write_text(issued.key)
    (folder / "turn-ca.pem").write_text(authority.certificate)
    with world.turn(
        "tls-listening-port=443", f"cert={folder}/turn.pem", f"pkey={folder}/turn.key", port=3480
    ) as server:
        server.wait_bound("tcp", 443)
        yield folder / "turn-ca.pem"


# --- narrow paths -----------------------------------------------------------------------------


@pytest.mark.netns
@pytest.mark.parametrize(("kind", "path"), [("port-restricted", "srflx"), ("symmetric", "relay")])
def test_a_smaller_mtu_between_the_nats(
    kind: Nat, path: str, fresh: NatSite, report_logs: Report
) -> None:
    """One that holds the link's first datagrams, of 1,200 bytes, and few longer ones.

    To a TURN server, each of them has a header more (RFC 8656 section 12.4).
    """
    links = [(fresh.world.core, "far0"), (fresh.world.far, "wan")]
    try:
        for router, interface in links:
            router.run("ip", "link", "set", interface, "mtu", "1240")
        for router in (fresh.world.near, fresh.world.far):
            router.become(kind)
        up(fresh.nat_tunnel({"servers": SERVERS}), report_logs, path)
    finally:
        for router, interface in links:
            router.run("ip", "link", "set", interface, "mtu", "1500")


@pytest.mark.netns
@pytest.mark.parametrize("mtu", [1240, 1200])
def test_a_narrow_path_that_tells_nobody(mtu: int, fresh: NatSite, report_logs: Report) -> None:
    """No ICMP says that a packet is too big, and fragments disappear (RFC 8900 section 3.7).

    TCP is told of the size by MSS clamping, as behind most such links.
    """
    links = [(fresh.world.core, "far0"), (fresh.world.far, "wan")]
    try:
        for router, interface in links:
            router.run("ip", "link", "set", interface, "mtu", str(mtu))
            router.run(
                "nft",
                "add table ip quiet; "
                "add chain ip quiet out { type filter hook output priority 0; }; "
                "add rule ip quiet out icmp type destination-unreachable drop; "
                "add chain ip quiet on { type filter hook forward priority 0; }; "
                "add rule ip quiet on tcp flags syn tcp option maxseg size set 1000; "
                # Before connection tracking, which would put them together again.
                "add chain ip quiet in { type filter hook prerouting priority -450; }; "
                "add rule ip quiet in ip frag-off & 0x3fff != 0 drop",
            )
        tunnel = fresh.nat_tunnel({"servers": SERVERS})
        try:
            bring_up(tunnel, report_logs)
            wait_kind(tunnel, "srflx")
            with tunnel.connect("echo") as sock:
                ask_target(tunnel)
                sock.sendall(b"hello")
                assert sock.recv(5) == b"hello"
        finally:
            tunnel.stop()
    finally:
        for router, interface in links:
            router.run("ip", "link", "set", interface, "mtu", "1500")


@pytest.mark.netns
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_path_too_narrow_for_signalling_is_named(
    scheme: str, fresh: NatSite, report_logs: Report
) -> None:
    """RFC 2923: a smaller MTU on the way, and ICMP filtered. With https it is no matter of TLS."""
    world = fresh.world
    tunnel = fresh.nat_tunnel({}, gateway={"socks": {"connect_timeout": 5}})
    url = f"{scheme}://{FAR}:{tunnel.signaling_port}/"
    tunnel.gateway_settings["peers"][0]["url"] = url
    if scheme == "https":
        authority = Authority("Signalling")
        # A certificate that needs more than one packet.
        issued = authority.issue(FAR, *(f"host-{number}.example.net" for number in range(120)))
        tunnel.homes["endpoint"].put("tls.pem", issued.both)
        tunnel.homes["gateway"].put("ca.pem", authority.certificate)
        tunnel.endpoint_settings["signaling"]["tls_certificate"] = "tls.pem"
        tunnel.gateway_settings["peers"][0]["tls_ca"] = "ca.pem"
    report_logs(tunnel)
    links = [(world.core, "far0"), (world.far, "wan")]
    try:
        for router, interface in links:
            router.run("ip", "link", "set", interface, "mtu", "700")
            router.run(
                "nft",
                "add table ip quiet; "
                "add chain ip quiet out { type filter hook output priority 0; }; "
                "add rule ip quiet out icmp type destination-unreachable drop",
            )
        tunnel.start_endpoint()
        tunnel.start_gateway().wait_log(
            # Mostly the kernel has seen smaller packets behind the missing ones. If not, the cause is
            # one of two that are named.
            rf"cannot reach office: .*{re.escape(url)}.*: the connection was made, but .*packets .*"
            r"(is the MTU of the path smaller, and|because the MTU of the path is smaller and) "
            r"ICMP filtered\?",
            timeout=180,
        )
        assert "no TLS with" not in tunnel.gateway.log_text()
    finally:
        for router, interface in links:
            router.run("ip", "link", "set", interface, "mtu", "1500")
        tunnel.stop()
