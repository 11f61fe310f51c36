"""The Ansible role, with a package file, against hosts of both releases in one run.

In the order of this file, which pytest and xdist keep, no host has to be prepared twice; each test is right
alone and in any other order too. How the role works with a repository: test_fleet.py.
"""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.ansible import Controller, Play
from support.installed import START_TIMEOUT, SUITES, limits_drop_in
from support.machines import Machine, why_no_boot
from support.processes import wait_until
from support.tunnels import write_key

pytestmark = [pytest.mark.netns, pytest.mark.timeout(1500)]

UNIT = "socks-tunnel@gateway.service"
SOCKET = "socks-tunnel@gateway.socket"
CONFIGURATION = "/etc/socks-tunnel/gateway.toml"
DRAIN_TIMEOUT = "drain_timeout = 5\n"
"""A setting that the first configuration does not have."""

PLAYBOOK = """
- hosts: all
  gather_facts: false
  roles: [socks_tunnel]
  post_tasks:
    - debug:
        msg: "public key: {{ socks_tunnel_public_key }}"
"""

PEERS = [
    {
        "name": "office",
        "public_key": base64.b64encode(bytes(31) + b"\1").decode(),
        "url": "http://10.77.0.2:8765/",
    }
]


class Fleet:
    """Two hosts without the package, and their controller; a host's name is that of its release."""

    def __init__(self, directory: Path, packages: Mapping[str, Path]) -> None:
        self.machines: dict[str, Machine] = {}
        self._packages = {suite: str(package.absolute()) for suite, package in packages.items()}
        self._playbook = directory / "play.yml"
        self._playbook.write_text(PLAYBOOK)
        try:
            for suite in SUITES:
                machine = self.machines[suite] = Machine("an", suite)
                machine.write(
                    "/etc/systemd/system/socks-tunnel@.service.d/test.conf", limits_drop_in()
                )
            self._controller = Controller(directory, {"hosts": self.machines})
        except BaseException:
            self.close()
            raise

    def play(self, *options: str, settings: str = "", **variables: object) -> Play:
        """Run the role, with a gateway's configuration that `settings` adds to."""
        return self._controller.play(
            self._playbook,
            *options,
            packages=self._packages,
            socks_tunnel_deb="{{ packages[inventory_hostname] }}",
            socks_tunnel_instance="gateway",
            socks_tunnel_settings=f'role = "gateway"\nworkers = {{ count = 1 }}\n{settings}',
            socks_tunnel_peers=PEERS,
            **variables,
        )

    def must_play(self, *, settings: str = "", **variables: object) -> None:
        """Runs the role, which must go well."""
        play = self.play(settings=settings, **variables)
        assert play.status == 0, play.output

    def have(self, *, drain_timeout: bool, held: bool) -> None:
        """Has the role run if the hosts are not yet so: with that setting, with listeners held by systemd."""
        script = (
            f"grep -c drain_timeout {CONFIGURATION} || true; systemctl is-active {SOCKET} || true"
        )
        wanted = f"{int(drain_timeout)}\n{'active' if held else 'inactive'}"
        if self.everywhere(script) != {wanted}:
            self.must_play(settings=DRAIN_TIMEOUT * drain_timeout, socks_tunnel_socket=held)
            self.wait_everywhere(script, wanted)

    def everywhere(self, script: str) -> set[str]:
        """What a shell script prints; one element if it is the same on all hosts."""
        return {machine.sh(script) for machine in self.machines.values()}

    def pids(self) -> list[int]:
        """The supervisors."""
        return [machine.main_pid(UNIT) for machine in self.machines.values()]

    def is_installed(self) -> bool:
        """Returns whether the hosts have the package."""
        return self.everywhere("test -e /usr/bin/socks-tunnel && echo yes || true") == {"yes"}

    def purge(self) -> None:
        """Makes the hosts such as have never had the package."""
        if self.is_installed():
            self.everywhere(
                "DEBIAN_FRONTEND=noninteractive apt-get purge --yes socks-tunnel >/dev/null 2>&1; "
                "rm -rf /etc/socks-tunnel"
            )

    def wait_everywhere(self, script: str, wanted: str) -> None:
        """Waits until a shell script prints this on all hosts."""
        wait_until(
            lambda: self.everywhere(script) == {wanted},
            f"{wanted!r} printed by {script}",
            timeout=START_TIMEOUT,
            interval=0.2,
        )

    def assert_others(self, pids: list[int]) -> None:
        """Asserts that each host has another supervisor than before."""
        for before, now in zip(pids, self.pids(), strict=True):
            assert now not in {0, before}

    def close(self) -> None:
        """Power the hosts off."""
        for machine in self.machines.values():
            machine.delete()


@pytest.fixture(scope="module")
def fleet(packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    if reason := why_no_boot():
        pytest.skip(reason)
    fleet = Fleet(tmp_path_factory.mktemp("controller"), packages)
    yield fleet
    fleet.close()


@pytest.fixture
def running(fleet: Fleet) -> Fleet:
    """The hosts with the package, and a gateway that runs as some play has left it."""
    if not fleet.is_installed():
        fleet.must_play()
    fleet.wait_everywhere(f"systemctl is-active {UNIT} || true", "active")
    return fleet


def same(number: int) -> dict[str, int]:
    """A number of changes on each host."""
    return dict.fromkeys(SUITES, number)


def test_check_mode_on_a_host_without_the_package(fleet: Fleet) -> None:
    fleet.purge()
    assert fleet.play("--check", "--diff").status == 0
    assert fleet.everywhere(
        "ls -d /etc/socks-tunnel /usr/lib/socks-tunnel 2>/dev/null || true"
    ) == {""}


def test_the_role_installs_and_runs(fleet: Fleet) -> None:
    fleet.purge()
    play = fleet.play()
    assert min(play.changed.values()) > 3
    fleet.wait_everywhere(
        f"systemctl is-active {UNIT} || true; systemctl is-enabled {UNIT}", "active\nenabled"
    )
    assert fleet.everywhere("cd /etc/socks-tunnel && stat -c '%U:%G %a %n' *") == {
        "root:root 600 gateway.key\nroot:socks-tunnel 640 gateway.toml"
    }
    keys = set(re.findall(r"public key: ([\w+/]{43}=)", play.output))
    assert len(keys) == 2, "each host has its own"
    # Nothing changes in a second run.
    again = fleet.play()
    assert again.changed == same(0), again.output


def test_a_change_is_reloaded(running: Fleet) -> None:
    fleet = running
    fleet.have(drain_timeout=False, held=False)
    pids = fleet.pids()
    since = {suite: machine.cursor() for suite, machine in fleet.machines.items()}
    checked = fleet.play("--check", settings=DRAIN_TIMEOUT)
    assert checked.changed == same(1), checked.output
    assert fleet.everywhere(f"grep -c drain_timeout {CONFIGURATION} || true") == {"0"}
    assert fleet.play(settings=DRAIN_TIMEOUT).changed == same(2), "the file and the reload"
    for suite, machine in fleet.machines.items():
        machine.wait_journal(f"reloaded {CONFIGURATION}", UNIT, since[suite])
    assert fleet.pids() == pids


def test_a_change_that_is_refused_is_taken_back(running: Fleet) -> None:
    fleet = running
    pids = fleet.pids()
    before = [machine.sh("sha256sum /etc/socks-tunnel/*") for machine in fleet.machines.values()]
    play = fleet.play(settings="drain_timout = 5\n", socks_tunnel_restart=True)
    assert play.status != 0
    assert [counters["failed"] for counters in play.counters.values()] == [1, 1]
    assert "The new configuration was refused" in play.output
    after = [machine.sh("sha256sum /etc/socks-tunnel/*") for machine in fleet.machines.values()]
    assert after == before
    assert fleet.pids() == pids, "nothing was restarted"


def test_a_given_key_and_held_listeners(running: Fleet, tmp_path: Path) -> None:
    fleet = running
    fleet.have(drain_timeout=True, held=False)
    pids = fleet.pids()
    public_key = write_key(tmp_path / "key")
    secret = (tmp_path / "key").read_text()
    play = fleet.play("--diff", socks_tunnel_private_key=secret, socks_tunnel_socket=True)
    assert play.status == 0, play.output
    assert "drain_timeout" in play.output, "the difference of the configuration is shown"
    assert secret.splitlines()[1] not in play.output
    assert play.output.count(f"public key: {public_key}") == 2
    fleet.assert_others(pids)
    fleet.wait_everywhere(f"systemctl is-active {SOCKET} || true", "active")


def test_a_restart_and_listeners_of_its_own(running: Fleet) -> None:
    fleet = running
    fleet.have(drain_timeout=False, held=True)
    pids = fleet.pids()
    play = fleet.play(
        settings="metrics = { listen = '127.0.0.1:9999' }\n", socks_tunnel_restart=True
    )
    # The file, the reload that checks it, the restart, the socket unit that is not wanted any more.
    assert play.changed == same(4)
    fleet.assert_others(pids)
    for machine in fleet.machines.values():
        status = json.loads(machine.sh("socks-tunnel status --json --instance gateway"))
        assert status["metrics"] == "127.0.0.1:9999"
    fleet.wait_everywhere(f"systemctl is-active {SOCKET} || true", "inactive")
