"""Two booted hosts with the package installed, a target behind the endpoint, and what tests do to them."""

import itertools
import re
import resource
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from support.hosts import DOMAIN, ENDPOINT_ADDRESS, TARGET_ADDRESS
from support.machines import BootedHosts, Machine
from support.processes import toml, wait_until
from support.rawsocks import Association
from support.targets import body_hash
from support.tunnels import Site, merged

SUITES = ("bookworm", "trixie")
PROXY = ("127.0.0.1", 1080)
START_TIMEOUT = 120.0
"""Seconds for a unit to come into a state, on a machine that does much else."""

QUERY = (
    b"\x07\x07\x01\x00\0\x01\0\0\0\0\0\0"
    + b"".join(bytes([len(label)]) + label.encode() for label in ["www", *DOMAIN.split(".")])
    + b"\0\0\x01\0\x01"
)
"""A DNS query for the address of www.DOMAIN (RFC 1035 section 4)."""

_CAP_SYS_RESOURCE = 24


def limits_drop_in() -> str:
    """What the unit asks for and this machine cannot give, made smaller; nothing on most machines."""
    lines: list[str] = []
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard != resource.RLIM_INFINITY and hard < 65_536:
        lines.append(f"LimitNOFILE={hard}")
    status = Path("/proc/self/status").read_text()
    capabilities = int(next(s for s in status.splitlines() if s.startswith("CapEff"))[8:], 16)
    if not capabilities >> _CAP_SYS_RESOURCE & 1:
        lines.append("OOMScoreAdjust=0")
    return "".join(f"{line}\n" for line in ("[Service]", *lines))


def install(machine: Machine, package: Path) -> str:
    """Install a package file with apt; what apt printed."""
    machine.copy_in(package, f"/var/tmp/{package.name}")
    return machine.sh(
        "DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends "
        "--allow-downgrades "
        f"/var/tmp/{package.name} 2>&1",
        timeout=600,
    )


class Host:
    """One of the two hosts: a machine, and the instance that it runs."""

    def __init__(self, machine: Machine, role: str) -> None:
        self.machine = machine
        self.role = role
        self.unit = f"socks-tunnel@{role}.service"
        self.settings: dict[str, Any] = {}
        self.public_key = ""

    def install(self, package: Path) -> str:
        """Install a package file with apt; what apt printed."""
        return install(self.machine, package)

    def wait_for_drain(self, since: str, timeout: float = START_TIMEOUT) -> None:
        """Wait until it drains, with flows, according to the journal behind a cursor."""
        wait_until(
            lambda: re.search(r"draining; [1-9]\d* flows", self.journal(since)),
            f"a drain of {self.unit}",
            timeout=timeout,
            interval=0.1,
        )

    def configure(self, **changes: Any) -> None:
        """Write the configuration, with changes laid over the usual one."""
        text = toml(merged(self.settings, changes))
        self.machine.write(f"/etc/socks-tunnel/{self.role}.toml", text)

    def systemctl(self, verb: str, *, check: bool = True) -> str:
        """`systemctl VERB` on the unit."""
        return self.machine.sh(f"systemctl {verb} {self.unit} 2>&1", check=check)

    def show(self, *names: str) -> dict[str, str]:
        """Properties of the unit."""
        return self.machine.properties(self.unit, *names)

    @property
    def state(self) -> str:
        """The unit's ActiveState."""
        return self.show("ActiveState")["ActiveState"]

    @property
    def pid(self) -> int:
        """The supervisor's process id inside."""
        return self.machine.main_pid(self.unit)

    def workers(self) -> list[int]:
        """The workers' process ids inside."""
        return self.machine.children(self.pid, "socks_tunnel_workers")

    def runs_compiled(self) -> set[bool]:
        """Returns, of the supervisor and the workers, whether they have mapped the compiled data path."""

        def maps(pid: int) -> str:
            return self.machine.sh(f"cat /proc/{pid}/maps")

        workers = {
            "/socks_tunnel_workers/relay/session.cpython-" in maps(p) for p in self.workers()
        }
        return {"/socks_tunnel__mypyc." in maps(self.pid), *workers}

    def version(self) -> str:
        """Returns what `socks-tunnel version` prints."""
        return self.machine.sh("socks-tunnel version")

    def wait_state(self, wanted: str) -> None:
        """Waits until the unit's ActiveState is that.

        `systemctl` may return before it is: a job to start has failed as soon as the unit deactivates.
        """
        wait_until(
            lambda: self.state == wanted,
            f"{self.unit} is {wanted}",
            timeout=START_TIMEOUT,
            interval=0.1,
        )

    def wait_workers(self, count: int = 2) -> list[int]:
        """Waits until so many workers run; returns their process ids inside."""

        def found() -> list[int]:
            workers = self.workers()
            return workers if len(workers) == count else []

        return wait_until(
            found, f"{count} workers of {self.unit}", timeout=START_TIMEOUT, interval=0.1
        )

    def wait_for_another(self, pid: int) -> None:
        """Wait until the unit runs with another supervisor than `pid`."""
        wait_until(
            lambda: self.pid not in {0, pid} and self.state == "active",
            f"{self.unit} runs again",
            timeout=2 * START_TIMEOUT,
            interval=0.1,
        )

    def wait_for_another_worker(self, pid: int, count: int) -> None:
        """Wait until `count` workers run, none of them `pid`."""
        wait_until(
            lambda: len(workers := self.workers()) == count and pid not in workers,
            f"another worker than {pid}",
            timeout=START_TIMEOUT,
            interval=0.1,
        )

    def wait_for_status(self, containing: str) -> None:
        """Wait until the unit's status line has some text in it."""
        self.wait_status(re.escape(containing))

    def wait_status(self, pattern: str) -> None:
        """Waits until a pattern is found in the unit's status line."""
        wait_until(
            lambda: re.search(pattern, self.show("StatusText")["StatusText"]),
            f"{pattern!r} in the status of {self.unit}",
            timeout=START_TIMEOUT,
            interval=0.1,
        )

    def journal(self, since: str = "") -> str:
        """What the unit wrote, and what systemd wrote about it."""
        return self.machine.journal(self.unit, since)

    def wait_journal(self, text: str, since: str = "") -> str:
        """Waits until the unit's part of the journal has a text, and returns that part."""
        return self.machine.wait_journal(text, self.unit, since)


class Scene:
    """The whole: `gateway` and `endpoint` with their machines, and the site with targets and DNS."""

    def __init__(self, gateway_suite: str, endpoint_suite: str) -> None:
        hosts = BootedHosts(gateway_suite, endpoint_suite)
        self.site = Site(hosts)
        self.gateway = Host(hosts.gateway, "gateway")
        self.endpoint = Host(hosts.endpoint, "endpoint")

    @property
    def both(self) -> tuple[Host, Host]:
        """Both hosts."""
        return self.gateway, self.endpoint

    def prepare(self, packages: Mapping[str, Path]) -> None:
        """Install on both, make keys, write configurations; nothing is started."""
        for host in self.both:
            host.install(packages[host.machine.suite])
            host.machine.write(
                "/etc/systemd/system/socks-tunnel@.service.d/test.conf", limits_drop_in()
            )
            host.machine.sh("systemctl daemon-reload")
            host.public_key = host.machine.sh(
                f"socks-tunnel keygen /etc/socks-tunnel/{host.role}.key"
            )
        ports = self.site.ports
        self.gateway.settings = {
            "role": "gateway",
            "drain_timeout": 30,
            "peers": [
                {
                    "name": "office",
                    "public_key": self.endpoint.public_key,
                    "url": f"http://{ENDPOINT_ADDRESS}:8765/",
                }
            ],
            "workers": {"count": 2},
        }
        self.endpoint.settings = {
            "role": "endpoint",
            "drain_timeout": 30,
            "signaling": {"listen": f"{ENDPOINT_ADDRESS}:8765"},
            "peers": [{"name": "laptop", "public_key": self.gateway.public_key}],
            "workers": {"count": 2},
            "policy": {
                "allowed_hosts": ["10.77.1.0/24", f"*.{DOMAIN}"],
                "allowed_ports": [
                    *(22, 53, ports["http"], ports["echo"], ports["sink"], ports["udp_echo"])
                ],
            },
        }
        for host in self.both:
            host.configure()

    def url(self, path: str) -> str:
        """A URL at the target, by its name in the corporate network."""
        return f"http://www.{DOMAIN}:{self.site.ports['http']}/{path}"

    def curl(self, path: str, *options: str, check: bool = True) -> str:
        """Run curl on the gateway, through the tunnel; `options` may end with more of a shell script."""
        command = ["curl", "--silent", "--show-error", "--max-time", "240"]
        proxy = ["--proxy", f"socks5h://{PROXY[0]}:{PROXY[1]}"]
        return self.gateway.machine.sh(
            " ".join([*command, *proxy, self.url(path), *options]), check=check
        )

    def works(self) -> bool:
        """True if one request gets through, which may take its time."""
        return '"address"' in self.curl("whoami", "--max-time 60", check=False)

    def wait_works(self, timeout: float = 2 * START_TIMEOUT) -> None:
        """Wait until requests get through."""
        wait_until(self.works, "a request that gets through", timeout=timeout, interval=0.2)

    def start_download(self) -> "Download":
        """Start a download on the gateway; half of it arrives."""
        return Download(self)

    def on_gateway(self, function: Callable[[], Any]) -> Any:
        """What a function returns whose sockets are the gateway host's."""
        return self.gateway.machine.call(function)

    def ask_dns(self) -> bytes:
        """Ask the name server behind the endpoint for www.DOMAIN over a UDP association."""

        def ask() -> bytes:
            with Association(PROXY, timeout=60) as association:
                return association.ask(TARGET_ADDRESS, 53, QUERY)[2]

        answer: bytes = self.on_gateway(ask)
        return answer

    def close(self) -> None:
        """Power everything off."""
        self.site.close()


class Download:
    """A download on the gateway's host, into a file there; the server stops half-way."""

    SIZE = 8 << 20
    FILE = "/var/tmp/download"

    _numbers = itertools.count()

    def __init__(self, scene: Scene) -> None:
        self._site = scene.site
        self._machine = scene.gateway.machine
        self._gate = str(next(self._numbers))
        self._machine.sh(f"rm -f {self.FILE}")
        self._curl = subprocess.Popen(
            self._machine.enter(
                *("curl", "--silent", "--show-error", "--max-time", "240"),
                *("--output", self.FILE, "--proxy", f"socks5h://{PROXY[0]}:{PROXY[1]}"),
                scene.url(f"bytes/{self.SIZE}?gate={self._gate}"),
            ),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        file = self._machine.root / self.FILE.lstrip("/")
        # curl writes what it has when it has a whole block, so the very half may not be there.
        wait_until(
            lambda: file.exists() and file.stat().st_size > self.SIZE // 4,
            "a first quarter",
            timeout=START_TIMEOUT,
        )

    @property
    def running(self) -> bool:
        """True while it has not ended, in whatever way."""
        return self._curl.poll() is None

    def finish(self) -> None:
        """Let the server go on, and wait for the end: every byte must have come."""
        self._site.open_gate(self._gate)
        _, errors = self._curl.communicate(timeout=120)
        assert self._curl.returncode == 0, errors.decode()
        assert self._machine.sh(f"sha256sum {self.FILE}").split()[0] == body_hash(self.SIZE)
