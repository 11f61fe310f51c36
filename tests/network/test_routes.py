"""Two endpoints at once: two networks with the same addresses, and what happens when one fails.

    gateway 10.77.0.1 ---- 10.77.0.2 berlin 10.77.1.1 ---- 10.77.1.2 target "berlin"
            10.78.0.1 ---- 10.78.0.2 paris  10.77.1.1 ---- 10.77.1.2 target "paris"

The scenes share the hosts: each mends what it has broken, and waits until the one before has recovered.
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import socks

from support.corporate import Server, is_bound
from support.figures import Told
from support.hosts import TARGET_ADDRESS, Host, join, why_no_namespaces
from support.processes import Daemon, toml, wait_until
from support.tunnels import write_key

pytestmark = [
    pytest.mark.netns,
    pytest.mark.timeout(400),  # on a loaded machine; the scene is made within the first test
]

PORT = 7007
RENDEZVOUS_PORT = 8443
PARIS_ADDRESS = "10.78.0.2"
PROXY = ("127.0.0.1", 11080)
PATIENCE = 90.0
"""Seconds that a client waits."""

ELSEWHERE_MAX = 45.0
"""Seconds; a loose bound on a loaded machine. What it really took is printed."""


class Office:
    """An endpoint and its target."""

    def __init__(self, name: str, gateway: Host, directory: Path, network: str) -> None:
        self.name = name
        self.address = f"{network}.2"
        self.directory = directory
        self.host, self.target = Host(f"{name}-ep"), Host(f"{name}-tg")
        join(gateway, self.host, f"gw-{name}", "ep0", network, f"fd{network.split('.')[1]}")
        join(self.host, self.target, "ep1", "tg0", "10.77.1", "fd77:1")
        for namespace in (self.host, gateway):
            namespace.run("ip", "-6", "address", "flush", "scope", "global")
        # Names that this endpoint alone can resolve; both lead to the same address.
        hosts = Path("/etc/netns") / self.host.name / "hosts"
        hosts.write_text(f"127.0.0.1 localhost\n{TARGET_ADDRESS} files.{name}.corp\n")
        server = Path(__file__).parents[1] / "support" / "named_server.py"
        self.server = self.target.start(sys.executable, server, name, TARGET_ADDRESS, str(PORT))
        for protocol in ("tcp", "udp"):
            wait_until(lambda: is_bound(self.target, protocol, PORT), f"the target of {name}")  # noqa: B023
        self.public_key = write_key(directory / f"{name}.key")
        self.daemon: Daemon
        self.rendezvous = ""
        """The service by which it is reached; empty: it listens itself."""

    def start(self, gateway_key: str) -> None:
        settings: dict[str, Any] = {
            "role": "endpoint",
            "identity": {"private_key_file": f"{self.name}.key"},
            "signaling": {"rendezvous": self.rendezvous}
            if self.rendezvous
            else {"listen": f"{self.address}:8765"},
            "peers": [{"name": "laptop", "public_key": gateway_key}],
            "policy": {"allowed_hosts": ["10.77.1.0/24", "*.corp"], "allowed_ports": ["*"]},
            "workers": {"count": 1},
            "metrics": {"listen": ""},
            "log": {"format": "text"},
        }
        file = self.directory / f"{self.name}.toml"
        file.touch(0o600)
        file.write_text(toml(settings))
        self.daemon = Daemon(self.name, self.directory, prefix=self.host.command())
        self.daemon.wait_ready()

    @contextlib.contextmanager
    def cut(self, interface: str, verdict: str = "drop") -> Iterator[None]:
        """Nothing passes an interface of the endpoint in this block."""
        self._drop(interface, verdict)
        try:
            yield
        finally:
            self.host.run("nft", "delete table inet cut")

    def _drop(self, interface: str, verdict: str) -> None:
        self.host.run(
            "nft",
            "add table inet cut; "
            "add chain inet cut in { type filter hook input priority 0; }; "
            f"add rule inet cut in iifname {interface} drop; "
            "add chain inet cut out { type filter hook output priority 0; }; "
            f"add rule inet cut out oifname {interface} {verdict}",
        )

    def kill(self) -> None:
        self.daemon.kill()

    def close(self) -> None:
        self.server.kill()
        self.server.wait()
        for host in (self.host, self.target):
            host.delete()


class Scene:
    """The gateway and both offices; with `rendezvous`, a service on the gateway's host between them."""

    def __init__(
        self, directory: Path, exit_stack: contextlib.ExitStack, *, rendezvous: bool = False
    ) -> None:
        self.gateway = Host("gw")
        exit_stack.callback(self.gateway.delete)
        self.offices = {
            name: Office(name, self.gateway, directory, network)
            for name, network in (("berlin", "10.77.0"), ("paris", "10.78.0"))
        }
        for office in self.offices.values():
            exit_stack.callback(office.close)
        key = write_key(directory / "laptop.key")
        self.key = key
        if rendezvous:
            self._serve_rendezvous(directory, exit_stack)
        for office in self.offices.values():
            office.start(key)
            exit_stack.callback(office.kill)
        either = ["berlin", "paris"]
        settings: dict[str, Any] = {
            "role": "gateway",
            "identity": {"private_key_file": "laptop.key"},
            "socks": {"listen": [f"{PROXY[0]}:{PROXY[1]}"]},
            "peers": [
                {
                    "name": name,
                    "public_key": office.public_key,
                    **(
                        {"rendezvous": office.rendezvous}
                        if office.rendezvous
                        else {"url": f"http://{office.address}:8765/"}
                    ),
                }
                for name, office in self.offices.items()
            ],
            "routes": [
                {"name": "berlin", "hosts": ["*.berlin.corp"], "peers": "berlin"},
                {"name": "paris", "hosts": ["*.paris.corp"], "peers": "paris"},
                {
                    "name": "either",
                    "hosts": ["10.77.1.0/24"],
                    "peers": either,
                    "failures": 2,
                    "recover_after": 1,
                },
                {
                    "name": "probed",
                    "hosts": ["192.0.2.0/24"],
                    "peers": either,
                    "failures": 2,
                    "recover_after": 1,
                    "probe": f"{TARGET_ADDRESS}:{PORT}",
                    "probe_interval": 1,
                },
            ],
            "workers": {"count": 2},
            "metrics": {"listen": ""},
            "log": {"format": "text"},
        }
        file = directory / "laptop.toml"
        file.touch(0o600)
        file.write_text(toml(settings))
        self.daemon = Daemon("laptop", directory, prefix=self.gateway.command())
        exit_stack.callback(self.daemon.kill)
        self.daemon.wait_ready()
        self.wait_preferred("berlin", "paris")

    def _serve_rendezvous(self, directory: Path, exit_stack: contextlib.ExitStack) -> None:
        config = directory / "rendezvous.toml"
        config.write_text(f'listen = "0.0.0.0:{RENDEZVOUS_PORT}"\nclients = "any"\n')
        command = (sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", config)
        server = Server("rendezvous", directory, self.gateway, command, None, None)
        exit_stack.callback(server.stop)
        server.wait_bound("tcp", RENDEZVOUS_PORT)
        for office in self.offices.values():
            ours = f"{office.address.rpartition('.')[0]}.1"
            office.rendezvous = f"ws://{ours}:{RENDEZVOUS_PORT}/"

    def rows(self, route: str) -> dict[str, str]:
        """The state of each peer of a route."""
        rows = self.daemon.control("status")["routes"]
        return {row["peer"]: row["state"] for row in rows if row["route"] == route}

    def wait_preferred(self, *peers: str, route: str = "either") -> None:
        wanted = {peer: "preferred" if peer in peers else "passed over" for peer in self.offices}
        wait_until(
            lambda: self.rows(route) == wanted, f"{wanted}:\n{self.daemon.tail()}", timeout=PATIENCE
        )

    def who(self, host: str) -> str:
        """Which target answers a new connection."""
        with self.gateway.inside():
            sock = socks.socksocket()
        with contextlib.closing(sock):
            sock.set_proxy(socks.SOCKS5, *PROXY, rdns=True)
            sock.settimeout(PATIENCE)
            sock.connect((host, PORT))
            return str(sock.makefile("r").readline().strip())

    def wait_who(self, host: str, name: str) -> None:
        """Waits until that target answers: for a moment, a busy machine may put a link in doubt."""
        wait_until(lambda: self.who(host) == name, f"an answer of {name}", timeout=PATIENCE)

    @contextlib.contextmanager
    def flow_of(self, host: str, name: str) -> Iterator[IO[str]]:
        """Yields what that target sends on a connection which stays open."""
        while True:
            with self.gateway.inside():
                sock = socks.socksocket()
            with contextlib.closing(sock):
                sock.set_proxy(socks.SOCKS5, *PROXY, rdns=True)
                sock.settimeout(PATIENCE)
                sock.connect((host, PORT))
                lines = sock.makefile("r")
                if lines.readline().strip() == name:
                    yield lines
                    return
            # For a moment, a busy machine may put a link in doubt.
            self.wait_who(host, name)

    def elsewhere(self) -> float:
        """Seconds until a connection that is begun now, after a failure, is answered."""
        began = time.monotonic()
        assert self.who(TARGET_ADDRESS) == "paris"
        return time.monotonic() - began


@pytest.fixture(scope="module")
def shared() -> Iterator[Scene]:
    if why := why_no_namespaces():
        pytest.skip(why)
    with tempfile.TemporaryDirectory(prefix="socks-tunnel-test-") as name:
        directory = Path(name)
        with contextlib.ExitStack() as exit_stack:
            made = Scene(directory, exit_stack)
            try:
                yield made
            finally:
                for log in sorted(directory.glob("*.log")):
                    print(f"== {log.name} ==\n{log.read_text()[-8000:]}")
            made.daemon.assert_clean()


@pytest.fixture
def scene(shared: Scene) -> Scene:
    """The gateway and both offices, all of them well."""
    for route in ("either", "probed"):
        shared.wait_preferred("berlin", "paris", route=route)
    return shared


def test_names_tell_two_networks_with_the_same_addresses_apart(scene: Scene) -> None:
    for name in ("berlin", "paris"):
        assert scene.who(f"files.{name}.corp") == name
    scene.wait_who(TARGET_ADDRESS, "berlin")


def test_what_no_route_has_is_refused(scene: Scene) -> None:
    with pytest.raises(socks.ProxyError) as refused:
        scene.who("www.example.com")
    assert "0x02" in str(refused.value)


def test_one_association_reaches_both_networks(scene: Scene) -> None:
    with scene.gateway.inside():
        sock = socks.socksocket(socket.AF_INET, socket.SOCK_DGRAM)
    with contextlib.closing(sock):
        sock.set_proxy(socks.SOCKS5, *PROXY, rdns=True)
        sock.settimeout(1)
        answers: set[bytes] = set()

        def asked() -> bool:
            with scene.gateway.inside():  # the first one makes the control connection
                for name in ("berlin", "paris"):
                    sock.sendto(b"?", (f"files.{name}.corp", PORT))
            with contextlib.suppress(TimeoutError):
                for _ in range(2):
                    answers.add(sock.recvfrom(100)[0])
            return answers == {b"berlin ?", b"paris ?"}

        wait_until(asked, f"answers of both: {answers}", timeout=60)
        wait_until(
            lambda: (
                {
                    flow["peer"]
                    for flow in scene.daemon.control("connections")
                    if flow["kind"] == "udp"
                }
                == {"berlin", "paris"}
            ),
            "an association with each",
        )


def test_a_killed_endpoint(scene: Scene, told: Told) -> None:
    berlin = scene.offices["berlin"]
    seen = len(scene.daemon.log_text())
    with scene.flow_of(TARGET_ADDRESS, "berlin") as lines:
        os.kill(berlin.daemon.pid, signal.SIGKILL)
        seconds = scene.elsewhere()
        told(f"new flows go elsewhere {seconds:.2f} s after an endpoint's process is killed")
        assert seconds < ELSEWHERE_MAX
        scene.wait_preferred("paris")
        scene.daemon.wait_log("berlin is passed over", after=seen)
        scene.daemon.wait_log("failover", after=seen)
        berlin.daemon.kill()
        berlin.start(scene.key)
        # The flow was the old endpoint's: it ends truly, once the new one says that it does not know it.
        with contextlib.suppress(ConnectionResetError):
            assert lines.readline() == ""
    scene.wait_preferred("berlin", "paris")
    scene.wait_who(TARGET_ADDRESS, "berlin")


def test_a_blackholed_endpoint(scene: Scene, told: Told) -> None:
    berlin = scene.offices["berlin"]
    with berlin.cut("ep0"):
        seconds = scene.elsewhere()
        told(f"new flows go elsewhere {seconds:.2f} s after an endpoint is gone silently")
        assert seconds < ELSEWHERE_MAX
        scene.wait_preferred("paris")
    scene.wait_preferred("berlin", "paris")
    scene.wait_who(TARGET_ADDRESS, "berlin")


def test_an_endpoint_that_does_not_reach_its_target(scene: Scene) -> None:
    berlin = scene.offices["berlin"]
    with berlin.cut("ep1", "reject with icmp type host-unreachable"):

        def passed_over() -> bool:
            """A peer is tried again a second later, so each look needs dials that fail before."""
            for _ in range(3):
                assert scene.who(TARGET_ADDRESS) == "paris", "no client notices"
            return scene.rows("either") == {"berlin": "passed over", "paris": "preferred"}

        wait_until(passed_over, "berlin is passed over", timeout=PATIENCE)
        scene.daemon.wait_log(r"dials did not reach 10\.77\.1\.2")
    scene.wait_preferred("berlin", "paris")
    scene.wait_who(TARGET_ADDRESS, "berlin")


def test_probes_notice_it_before_any_client_does(scene: Scene) -> None:
    berlin = scene.offices["berlin"]
    with berlin.cut("ep1"):
        scene.wait_preferred("paris", route="probed")
        scene.daemon.wait_log(r"2 probes failed, the last one: 10\.77\.1\.2:7007: ")
        scene.wait_preferred("berlin", "paris", route="either")
    scene.wait_preferred("berlin", "paris", route="probed")
