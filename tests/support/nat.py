"""A small internet for the tests of ICE: a gateway and an endpoint, each behind a router that may be a NAT.

    gateway 192.168.1.2 -- near 198.18.2.2 -- 198.18.2.1 internet 198.18.3.1 -- 198.18.3.2 far -- 192.168.2.2 endpoint
                                                  198.18.1.1 -- 198.18.1.2 services (STUN, TURN, proxy)

The same with IPv6 addresses in 2001:db8:N::/64, which no router changes. Behind the endpoint is the
usual target's host, 10.77.1.2. Routers are nftables; what kind of NAT each is can be changed at any time.
"""

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from support.corporate import Server, need
from support.hosts import Host, join
from support.tunnels import Site, Tunnel

Nat = Literal["none", "full-cone", "address-restricted", "port-restricted", "symmetric"]

SERVICES = "198.18.1.2"
SERVICES6 = "2001:db8:1::2"
FAR = "198.18.3.2"
"""The endpoint's address as the internet sees it; its TCP ports are the endpoint's."""

CARRIER = "198.18.9.9"
CARRIER6 = "2001:db8:9::9"
"""The public address of the carrier's NAT, where there is one."""

NEAR = "198.18.2.2"
"""The near router's address on the internet."""

GATEWAY_INSIDE = "192.168.1.2"
ENDPOINT_INSIDE = "192.168.2.2"
GATEWAY_INSIDE6 = "2001:db8:101::2"
ENDPOINT_INSIDE6 = "2001:db8:102::2"

NAT64 = "2001:db8:64::"
NAT64_POOL = "198.18.7.0/24"
NAT64_ROUTER = "198.18.7.1"

TURN_USER, TURN_PASSWORD = "alice", "open sesame"
PROXY_USER, PROXY_PASSWORD = "bob", "p@ss:word"

_CONE = "flags dynamic,timeout; timeout 120s;"


def rules(kind: Nat, inside: str, extra: str = "") -> str:
    """The ruleset of a router with interfaces `wan` and `lan` and one host inside.

    Linux keeps the source port of a UDP flow where it can, so its NAT is endpoint-independent in
    mapping, and address and port-dependent in filtering (RFC 4787): port-restricted. The cones are
    that with inbound packets let through that the flow table does not know: to a port that was sent
    from (full cone), or only from an address that was sent to. Symmetric: a random port for each
    flow. A packet from outside that belongs to no flow is dropped before it makes one.
    """
    pre = {
        "full-cone": f"iifname wan udp dport @open dnat to {inside}",
        "address-restricted": f"iifname wan ip saddr . udp dport @seen dnat to {inside}",
    }.get(kind, "")
    post = {
        "none": "",
        "symmetric": "oifname wan meta l4proto udp masquerade fully-random",
    }.get(kind, "oifname wan masquerade")
    return f"""
flush ruleset
table ip nat {{
  set open {{ type inet_service; {_CONE} }}
  set seen {{ type ipv4_addr . inet_service; {_CONE} }}
  chain pre {{
    type nat hook prerouting priority dstnat;
    iifname wan meta l4proto tcp dnat to {inside}
    {pre}
  }}
  chain post {{
    type nat hook postrouting priority srcnat;
    {post}
    oifname wan meta l4proto tcp masquerade
  }}
  chain input {{
    type filter hook input priority 0;
    iifname wan meta l4proto udp drop
  }}
  chain forward {{
    type filter hook forward priority 0;
    oifname wan meta l4proto udp update @open {{ udp sport }}
    oifname wan meta l4proto udp update @seen {{ ip daddr . udp sport }}
    {extra}
  }}
}}
"""


class Router(Host):
    """A router between `lan` and `wan`."""

    def __init__(self, role: str, inside: str) -> None:
        super().__init__(role)
        self.behind = inside
        self.sysctl("net/ipv4/ip_forward", "1")
        self.sysctl("net/ipv6/conf/all/forwarding", "1")

    def become(self, kind: Nat, extra: str = "") -> None:
        """Change the kind of NAT; flows that are there are forgotten."""
        subprocess.run(
            self.command("nft", "-f", "-"),
            input=rules(kind, self.behind, extra),
            text=True,
            check=True,
        )


class Internet:
    """The hosts of the module's picture, with the attributes that a :class:`Site` needs of them."""

    def __init__(
        self,
        *,
        ipv4: bool = True,
        ipv6: bool = False,
        gateway: Callable[[str], Any] = Host,
        endpoint: Callable[[str], Any] = Host,
    ) -> None:
        """`gateway` and `endpoint` make these hosts, with their role: namespaces, or machines."""
        self.ipv4 = ipv4
        self._made: list[Host] = []
        try:
            self.core = self._make(Router("net", ""))
            self.services = self._make(Host("srv"))
            self.near = self._make(Router("near", GATEWAY_INSIDE))
            self.far = self._make(Router("far", ENDPOINT_INSIDE))
            self.gateway = self._make(gateway("gw"))
            self.endpoint = self._make(endpoint("ep"))
            self.target = self._make(Host("tg"))
            self._join(
                self.core, self.services, "srv0", "net0", "198.18.1", "2001:db8:1", ipv4, ipv6
            )
            self._join(self.core, self.near, "near0", "wan", "198.18.2", "2001:db8:2", ipv4, ipv6)
            self._join(self.core, self.far, "far0", "wan", "198.18.3", "2001:db8:3", ipv4, ipv6)
            self._join(
                self.near, self.gateway, "lan", "gw0", "192.168.1", "2001:db8:101", ipv4, ipv6
            )
            self._join(
                self.far, self.endpoint, "lan", "ep0", "192.168.2", "2001:db8:102", ipv4, ipv6
            )
            join(self.endpoint, self.target, "ep1", "tg0", "10.77.1", "fd77:1")
            self._routes(ipv4, ipv6)
        except BaseException:
            self.delete()
            raise

    def _make(self, host: Any) -> Any:
        self._made.append(host)
        return host

    def _join(
        self,
        a: Host,
        b: Host,
        name_a: str,
        name_b: str,
        net4: str,
        net6: str,
        ipv4: bool,
        ipv6: bool,
    ) -> None:
        join(a, b, name_a, name_b, net4, net6)
        for host, name in ((a, name_a), (b, name_b)):
            if not ipv4:
                host.run("ip", "-4", "address", "flush", "dev", name)
            if not ipv6:
                host.run("ip", "-6", "address", "flush", "dev", name, "scope", "global")

    def _routes(self, ipv4: bool, ipv6: bool) -> None:
        hops = [
            (self.gateway, "192.168.1.1", "2001:db8:101::1"),
            (self.endpoint, "192.168.2.1", "2001:db8:102::1"),
            (self.near, "198.18.2.1", "2001:db8:2::1"),
            (self.far, "198.18.3.1", "2001:db8:3::1"),
            (self.services, "198.18.1.1", "2001:db8:1::1"),
        ]
        for host, hop4, hop6 in hops:
            if ipv4:
                host.run("ip", "route", "add", "default", "via", hop4)
            if ipv6:
                host.run("ip", "-6", "route", "add", "default", "via", hop6)
        if ipv6:
            self.core.run("ip", "-6", "route", "add", "2001:db8:101::/64", "via", "2001:db8:2::2")
            self.core.run("ip", "-6", "route", "add", "2001:db8:102::/64", "via", "2001:db8:3::2")

    def carrier_nat(self, *insides: str, hairpin: bool = False) -> None:
        """Put a second NAT, a carrier's, before some routers: one public address for all of them.

        With `hairpin`, packets from inside to that address go where packets from outside would
        (RFC 4787 section 6), and it is a full cone; else it is port-restricted. Sources in IPv6 make it
        one of IPv6 (NAT66), before hosts that reach each other by no other way.
        """
        sources = ", ".join(insides)
        six = ":" in sources
        ip, kind = ("ip6", "ipv6_addr") if six else ("ip", "ipv4_addr")
        carrier, length = (CARRIER6, 128) if six else (CARRIER, 32)
        pre = f"{ip} daddr {carrier} dnat to udp dport map @open" if hairpin else ""
        # Looks at packets before they are translated.
        apart = f"{ip} saddr {{ {sources} }} {ip} daddr {{ {sources} }} drop" if six else ""
        self.core.run("ip", "address", "replace", f"{carrier}/{length}", "dev", "lo")
        subprocess.run(
            self.core.command("nft", "-f", "-"),
            input=f"""
table {ip} carrier {{
  map open {{ type inet_service : {kind}; {_CONE} }}
  chain apart {{ type filter hook prerouting priority raw; {apart}; }}
  chain pre {{ type nat hook prerouting priority dstnat; {pre}; }}
  chain post {{
    type nat hook postrouting priority srcnat;
    {ip} saddr {{ {sources} }} meta l4proto udp snat to {carrier}
  }}
  chain input {{ type filter hook input priority 0; meta l4proto udp drop; }}
  chain forward {{
    type filter hook forward priority 0;
    {ip} saddr {{ {sources} }} meta l4proto udp update @open {{ udp sport : {ip} saddr }}
  }}
}}
""".replace("; ;", ";"),
            text=True,
            check=True,
        )

    @contextlib.contextmanager
    def nat64(self, directory: Path) -> Iterator[None]:
        """Has the near router translate between IPv6 inside and IPv4 outside (RFC 7915), by tayga.

        :data:`NAT64` is its prefix, see :func:`behind_nat64`. Each host inside has an address of
        :data:`NAT64_POOL`. The well-known prefix 64:ff9b::/96 is not for addresses that are not global,
        such as those of this internet (RFC 6052 section 3.1).
        """
        config = directory / "tayga.conf"
        config.write_text(
            f"tun-device nat64\nipv4-addr {NAT64_ROUTER}\nipv6-addr 2001:db8:101::64\n"
            f"prefix {NAT64}/96\ndynamic-pool {NAT64_POOL}\ndata-dir {directory}\n"
        )
        near, tayga = self.near, need("tayga")
        near.run(tayga, "--mktun", "--config", config)
        near.run("ip", "link", "set", "nat64", "up")
        near.run("ip", "route", "add", NAT64_POOL, "dev", "nat64")
        near.run("ip", "-6", "route", "add", f"{NAT64}/96", "dev", "nat64")
        self.core.run("ip", "route", "add", NAT64_POOL, "via", NEAR)
        process = near.start(
            tayga,
            *("--nodetach", "--config", config),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)

    def route_insides(self, *, near: bool, far: bool) -> None:
        """Let the internet know the way to the private networks that are behind no NAT."""
        sides = ((near, "192.168.1.0/24", "198.18.2.2"), (far, "192.168.2.0/24", "198.18.3.2"))
        for known, inside, router in sides:
            self.core.run("ip", "route", "del", inside, check=False)
            if known:
                self.core.run("ip", "route", "add", inside, "via", router)

    def delete(self) -> None:
        """Remove the namespaces."""
        for host in self._made:
            host.delete()


class NatSite(Site):
    """The small internet, with target servers behind the endpoint, and services on the internet."""

    hosts: Any

    def __init__(self, **families: bool) -> None:
        super().__init__(Internet(**families))  # type: ignore[arg-type] # has what a site needs
        self.world: Internet = self.hosts

    @contextlib.contextmanager
    def serving(
        self, *command: str | Path, tcp: Sequence[int] = (), udp: Sequence[int] = ()
    ) -> Iterator[Server]:
        """A server program on the services' host."""
        name = Path(str(command[0])).name
        server = Server(name, self.directory, self.world.services, command, None, None)
        try:
            for port in tcp:
                server.wait_bound("tcp", port)
            for port in udp:
                server.wait_bound("udp", port)
            yield server
        finally:
            server.stop()

    @contextlib.contextmanager
    def turn(self, *lines: str, port: int = 3478) -> Iterator[Server]:
        """coturn on the services' host, for UDP and TCP; further lines of its configuration."""
        config = self.directory / f"turnserver-{port}.conf"
        config.write_text(
            f"listening-port={port}\nmin-port=50000\nmax-port=50999\nlt-cred-mech\n"
            f"user={TURN_USER}:{TURN_PASSWORD}\nrealm=example.net\nno-cli\nno-dtls\nlog-file=stdout\nsimple-log\n"
            f"pidfile={self.directory}/turn-{port}.pid\nuserdb={self.directory}/turn-{port}.db\n"
            + "".join(f"{line}\n" for line in lines)
        )
        with self.serving(need("turnserver"), "-c", config, tcp=[port], udp=[port]) as server:
            yield server

    @contextlib.contextmanager
    def proxy(self) -> Iterator[str]:
        """squid on the services' host, which wants a login; the URL with it."""
        self.directory.chmod(0o755)  # squid gives up root
        hashed = subprocess.run(
            ["openssl", "passwd", "-apr1", PROXY_PASSWORD],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        passwords = self.directory / "squid.passwords"
        passwords.write_text(f"{PROXY_USER}:{hashed}\n")
        log = self.directory / "squid.cache.log"
        log.touch()
        shutil.chown(log, "proxy")
        config = self.directory / "squid.conf"
        config.write_text(
            "http_port 3128\npinger_enable off\nvisible_hostname proxy\nshutdown_lifetime 0 seconds\n"
            f"auth_param basic program /usr/lib/squid/basic_ncsa_auth {passwords}\n"
            "acl known proxy_auth REQUIRED\nhttp_access allow known\nhttp_access deny all\n"
            "cache deny all\npid_filename none\nlogfile_rotate 0\naccess_log none\n"
            f"cache_log {log}\ncache_store_log none\nnetdb_filename none\n"
        )
        with self.serving(need("squid"), "-N", "-f", config, tcp=[3128]):
            yield f"http://{PROXY_USER}:{quote(PROXY_PASSWORD)}@{SERVICES}:3128"

    def nat_tunnel(self, ice: dict[str, Any], *, url: str | None = None, **tables: Any) -> Tunnel:
        """A tunnel, not started: signalling over the far router's address, `[ice]` on both sides."""
        tunnel = self.tunnel(
            {"ice": ice, **tables.get("gateway", {})},
            {"ice": ice, **tables.get("endpoint", {})},
            foreground=True,
        )
        port = tunnel.signaling_port
        tunnel.gateway_settings["peers"][0]["url"] = url or f"http://{FAR}:{port}/"
        anywhere = "0.0.0.0" if self.world.ipv4 else "[::]"
        tunnel.endpoint_settings["signaling"] = {"listen": f"{anywhere}:{port}"}
        return tunnel


def behind_nat64(address: str) -> str:
    """The IPv6 address of an IPv4 address as hosts behind the NAT64 see it (RFC 6052 section 2.2)."""
    return str(IPv6Address(int(IPv6Address(NAT64)) + int(IPv4Address(address))))


def turn_server(*urls: str) -> dict[str, Any]:
    """An entry of `ice.servers`."""
    return {"urls": list(urls), "username": TURN_USER, "credential": TURN_PASSWORD}
