"""Hosts for the system tests: Linux network namespaces joined by veth pairs.

Three of them, with the endpoint the only way from the gateway's host to the target:

    gateway 10.77.0.1 fd77::1 -- 10.77.0.2 fd77::2 endpoint 10.77.1.1 fd77:1::1 -- 10.77.1.2 fd77:1::2 target

The endpoint does not forward packets, so what reaches the target went through the tunnel.
"""

import contextlib
import ctypes
import functools
import itertools
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()

GATEWAY_ADDRESS = "10.77.0.1"
ENDPOINT_ADDRESS = "10.77.0.2"
ENDPOINT_INSIDE_ADDRESS = "10.77.1.1"
TARGET_ADDRESS = "10.77.1.2"
ENDPOINT_INSIDE_ADDRESS6 = "fd77:1::1"
TARGET_ADDRESS6 = "fd77:1::2"
DOMAIN = "internal.corp"


@functools.cache
def why_no_namespaces() -> str | None:
    """Why this machine cannot have network namespaces, or None where it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "the command ip (iproute2) is missing"
    name = f"st-{os.getpid()}-probe"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no network namespaces here: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return None


class Host:
    """One network namespace with its loopback up, and the processes and sockets made in it."""

    def __init__(self, role: str) -> None:
        self.name = f"st-{os.getpid()}-{next(_numbers)}-{role}"
        self._etc = Path("/etc/netns") / self.name
        ip("netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")
        # A new namespace may take these from the machine's own.
        self.sysctl("net/ipv4/ip_forward", "0")
        self.sysctl("net/ipv6/conf/all/forwarding", "0")
        self.sysctl("net/ipv6/conf/all/disable_ipv6", "0")
        # Without duplicate address detection (RFC 4862 section 5.4): while a router's link-local address
        # is tentative, it cannot ask for its neighbours, and the first packets need one or two seconds.
        self.sysctl("net/ipv6/conf/all/accept_dad", "0")
        self.sysctl("net/ipv6/conf/default/accept_dad", "0")
        self.resolver(None)

    def sysctl(self, key: str, value: str) -> None:
        """Set a network parameter of this host."""
        self.run("sh", "-c", 'echo "$2" > "$1"', "sh", f"/proc/sys/{key}", value)

    def resolver(self, nameserver: str | None) -> None:
        """Gives the host's programs their own resolv.conf (`ip netns exec` mounts it) and hosts file."""
        self._etc.mkdir(parents=True, exist_ok=True)
        # 192.0.2.1 (RFC 5737) is unreachable: without a name server of its own, a look-up fails at once.
        server = nameserver or "192.0.2.1"
        (self._etc / "resolv.conf").write_text(
            f"nameserver {server}\noptions timeout:2 attempts:2\n"
        )
        (self._etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")

    def command(self, *arguments: str | Path) -> list[str]:
        """The command line that runs `arguments` on this host."""
        return ["ip", "netns", "exec", self.name, *map(str, arguments)]

    def run(
        self, *arguments: str | Path, check: bool = True, timeout: float = 120, **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, its output captured as text."""
        done = subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            **options,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"{' '.join(map(str, arguments))}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def start(self, *arguments: str | Path, **options: Any) -> subprocess.Popen[bytes]:
        """Start a process; `options` are Popen's. The caller ends it."""
        return subprocess.Popen(self.command(*arguments), **options)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Sockets made in this block belong to the host, and stay with it afterwards.

        Holds for the calling thread only.
        """
        with Path("/proc/thread-self/ns/net").open("rb") as home:
            with Path(f"/run/netns/{self.name}").open("rb") as there:
                _enter(there.fileno())
            try:
                yield
            finally:
                _enter(home.fileno())

    def call(self, function: Callable[[], T]) -> T:
        """What `function` returns when it is called on this host."""
        with self.inside():
            return function()

    def delete(self) -> None:
        """Remove the namespace; its processes have ended."""
        ip("netns", "delete", self.name)
        shutil.rmtree(self._etc)


def _enter(namespace: int) -> None:
    if _libc.setns(namespace, _CLONE_NEWNET) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def ip(*arguments: str) -> None:
    """Run the command ip."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise AssertionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def join(a: Host, b: Host, name_a: str, name_b: str, network4: str, network6: str) -> None:
    """A veth pair with MTU 1500 between two hosts: `a` gets address 1, `b` address 2 of each network."""
    ip(
        *("link", "add", name_a, "netns", a.name, "mtu", "1500", "type", "veth"),
        *("peer", "name", name_b, "netns", b.name, "mtu", "1500"),
    )
    for number, host, name in ((1, a, name_a), (2, b, name_b)):
        host.run("ip", "address", "add", f"{network4}.{number}/24", "dev", name)
        # Without duplicate address detection: the address is usable at once.
        host.run("ip", "address", "add", f"{network6}::{number}/64", "dev", name, "nodad")
        host.run("ip", "link", "set", name, "up")


class ThreeHosts:
    """A gateway's host, an endpoint's host and a target's host; see the module's picture."""

    def __init__(self) -> None:
        self._made: list[Host] = []
        try:
            self.gateway = self._make("gw")
            self.endpoint = self._make("ep")
            self.target = self._make("tg")
            join(self.gateway, self.endpoint, "gw0", "ep0", "10.77.0", "fd77")
            join(self.endpoint, self.target, "ep1", "tg0", "10.77.1", "fd77:1")
        except BaseException:
            self.delete()
            raise
        self.endpoint.resolver(TARGET_ADDRESS)

    def _make(self, role: str) -> Host:
        host = Host(role)
        self._made.append(host)
        return host

    def cut(self, *devices: str) -> None:
        """Drop every packet between gateway and endpoint, silently, both ways.

        `devices` are those of the endpoint that lead to the gateway, if there are more than one.
        """
        names = ", ".join(["ep0", *devices])
        self.endpoint.run(
            "nft",
            "add table inet cut; "
            "add chain inet cut in { type filter hook input priority 0; }; "
            f"add rule inet cut in iifname {{ {names} }} drop; "
            "add chain inet cut out { type filter hook output priority 0; }; "
            f"add rule inet cut out oifname {{ {names} }} drop",
        )

    def mend(self) -> None:
        """Undo :meth:`cut`."""
        self.endpoint.run("nft", "delete table inet cut")

    def delete(self) -> None:
        """Remove the namespaces."""
        for host in self._made:
            host.delete()
