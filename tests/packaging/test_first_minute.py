"""From two fresh hosts behind NATs to the first curl, by the commands that the README shows.

The README's block is run as it stands, on booted hosts of the releases that its packages are for.
Only the token is another one, and the version and the release in the names of the packages.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from support.certificates import Authority
from support.checkout import ROOT
from support.corporate import Server, need
from support.figures import Told
from support.installed import limits_drop_in
from support.machines import Machine, why_no_boot
from support.nat import SERVICES, Internet
from support.processes import wait_until

pytestmark = [pytest.mark.netns, pytest.mark.timeout(1500)]

README = ROOT / "README.md"
SECRET = "north by north-west"
SERVICE = "rendezvous.example.net"
COMMANDS_MAX = 4
"""What it may take, before the curl."""

RENDEZVOUS = f"""
listen = "0.0.0.0:443"
tls_certificate = "service.pem"
clients = "any"

[turn]
servers = [{{ urls = "turn:{SERVICES}" }}]
secret_file = "turn.secret"
"""

TRUST = """
set -e
cat >/root/company.pem
mkdir -p /etc/ssl/certs
cat /root/company.pem >>/etc/ssl/certs/ca-certificates.crt
for place in /usr/lib/ssl /etc/ssl; do
  mkdir -p $place
  test -e $place/cert.pem || ln -s /etc/ssl/certs/ca-certificates.crt $place/cert.pem
done
"""


def shown() -> list[tuple[str, str]]:
    """Returns the host and the command of each line of the README's block."""
    heading = "## Two hosts that meet at a rendezvous service\n"
    section = README.read_text("utf-8").partition(heading)[2].partition("\n## ")[0]
    (block,) = re.findall(r"```console\n(.*?)```", section, flags=re.DOTALL)
    return [tuple(line.split("# ", 1)) for line in block.splitlines()]


class World:
    """The small internet with two fresh machines, a service with coturn, and a web server."""

    def __init__(
        self, directory: Path, packages: dict[str, Path], gateway: str, endpoint: str
    ) -> None:
        self._stack = ExitStack()
        self._directory = directory
        self.internet = Internet(
            gateway=partial(Machine, suite=gateway), endpoint=partial(Machine, suite=endpoint)
        )
        self._stack.callback(self.internet.delete)
        try:
            self.internet.near.become("port-restricted")
            self.internet.far.become("symmetric")
            self._serve()
            self.machines = {"laptop": self.internet.gateway, "office": self.internet.endpoint}
            for machine in self.machines.values():
                self._prepare(machine, packages[machine.suite])
        except BaseException:
            self.close()
            raise

    def _serve(self) -> None:
        authority = Authority("First Minute Root")
        self._root = authority.certificate
        place = self._directory
        (place / "service.pem").write_text(authority.issue(SERVICE).both)
        (place / "service.pem").chmod(0o600)
        (place / "turn.secret").write_text(SECRET)
        (place / "rendezvous.toml").write_text(RENDEZVOUS)
        (place / "turn.conf").write_text(
            f"listening-port=3478\nuse-auth-secret\nstatic-auth-secret={SECRET}\nrealm=example.net\n"
            f"no-cli\nno-dtls\nlog-file=stdout\nsimple-log\npidfile={place}/turn.pid\n"
            f"userdb={place}/turn.db\n"
        )
        web = place / "web"
        web.mkdir()
        (web / "index.html").write_text("the first page\n")
        run = (sys.executable, "-m", "socks_tunnel", "rendezvous", "--config")
        self.service = self._server("rendezvous", run, place / "rendezvous.toml")
        self.service.wait_bound("tcp", 443)
        self._server("turn", (need("turnserver"), "-c"), place / "turn.conf").wait_bound(
            "udp", 3478
        )
        command = (sys.executable, "-m", "http.server", "--directory", web, "80")
        target = Server("web", place, self.internet.target, command, None, None)
        self._stack.callback(target.stop)
        target.wait_bound("tcp", 80)

    def _server(self, name: str, command: tuple[str, ...], config: Path) -> Server:
        services = self.internet.services
        server = Server(name, self._directory, services, (*command, config), None, None)
        self._stack.callback(server.stop)
        return server

    def _prepare(self, machine: Machine, package: Path) -> None:
        """What the company's image has: the package file, and who is where and trusted."""
        machine.copy_in(package, f"/root/{package.name}")
        machine.write("/etc/systemd/system/socks-tunnel@.service.d/test.conf", limits_drop_in())
        machine.sh(f"echo {SERVICES} {SERVICE} >>/etc/hosts; systemctl daemon-reload")
        subprocess.run(
            machine.enter("/bin/sh", "-c", TRUST), input=self._root, text=True, check=True
        )

    def close(self) -> None:
        """Ends everything."""
        self._stack.close()


@pytest.fixture(params=[("bookworm", "trixie"), ("trixie", "bookworm")], ids="-".join)
def world(
    packages: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[World]:
    """Each release is the gateway once, and the endpoint once."""
    if reason := why_no_boot():
        pytest.skip(reason)
    made = World(tmp_path, packages, *request.param)
    try:
        yield made
    finally:
        made.close()


def test_the_readme_from_nothing_to_the_first_page(
    world: World, packages: dict[str, Path], capsys: pytest.CaptureFixture[str], told: Told
) -> None:
    commands = shown()
    assert commands[-1][1].startswith("curl ")
    assert len(commands) - 1 <= COMMANDS_MAX
    assert {host for host, _ in commands} == {"office", "laptop"}
    token, printed, times = "", "", []
    for host, command in commands:
        machine = world.machines[host]
        command = re.sub(r"socks-tunnel_\S+\.deb", packages[machine.suite].name, command)
        command = re.sub(r"st1_\S+", token or "no token", command)
        began = time.monotonic()
        try:
            printed = machine.sh(
                f"cd /root; DEBIAN_FRONTEND=noninteractive {command} </dev/null 2>&1", timeout=600
            )
        except AssertionError:
            with capsys.disabled():
                print(world.service.tail(), *(m.journal() for m in world.machines.values()))
            raise
        times.append(time.monotonic() - began)
        found = re.search(r"--token (st1_\S+)", printed)
        token = found[1] if found else token
    assert printed.splitlines()[-1] == "the first page"  # before it, curl shows its progress
    each = ", ".join(f"{seconds:.1f}" for seconds in times)
    told(f"from two fresh machines to the first page: {sum(times):.1f} s ({each})")
    wait_until(
        lambda: re.search(
            '"path_kind": "(srflx|prflx|relay)"',
            world.machines["laptop"].sh("socks-tunnel status --json"),
        ),
        "a path through both NATs",
    )
