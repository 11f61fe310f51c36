"""A fleet: an apt repository, upgrades and the way back, by hand and by the playbook.

Files and commands are those that docs/fleet.md shows. In the order of this file, which pytest and xdist keep,
little has to be installed again; each test is right alone and in any other order too.
"""

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.ansible import Controller, Play
from support.hosts import GATEWAY_ADDRESS, Host, join
from support.installed import START_TIMEOUT, SUITES, limits_drop_in
from support.machines import Machine, why_no_boot
from support.processes import wait_until
from support.repository import NAME, Repository, shown_commands, source, version_of
from support.tunnels import write_key

pytestmark = [pytest.mark.netns, pytest.mark.timeout(1500)]

UNIT = "socks-tunnel@gateway.service"
SOURCE = "/etc/apt/sources.list.d/socks-tunnel.sources"

CONFIGURATION = """
role = "gateway"

[[peers]]
name = "office"
public_key = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAE="
url = "http://10.77.0.2:8765/"
"""

FACT_CACHE = """
[defaults]
fact_caching = jsonfile
fact_caching_timeout = 0
fact_caching_connection = {{CWD}}/facts
"""

# What apt says of a signature: gpgv's words on Debian 12, Sequoia's on Debian 13.
UNKNOWN_KEY = {"bookworm": "NO_PUBKEY", "trixie": "Missing key"}


class Network:
    """A host with the repository, and booted hosts around it that know no other one."""

    def __init__(self, directory: Path) -> None:
        self._hosts: list[Host] = []
        self.newest: Mapping[str, Path] = {}
        self._center = self._add(Host("apt"))
        try:
            self.repository = Repository(directory, self._center)
        except BaseException:
            self._center.delete()
            raise

    def _add(self, host: Host) -> Host:
        self._hosts.append(host)
        return host

    def boot(self, suite: str, role: str) -> Machine:
        """A further host."""
        machine = Machine(role, suite)
        self._add(machine)
        number = len(self._hosts)
        join(self._center, machine, f"apt{number}", "apt0", f"10.79.{number}", f"fd79:{number}")
        machine.sh(f"echo 10.79.{number}.1 {NAME} >>/etc/hosts; rm -f /etc/apt/sources.list.d/*")
        machine.write("/etc/systemd/system/socks-tunnel@.service.d/test.conf", limits_drop_in())
        return machine

    def publish(self, packages: Mapping[str, Path]) -> None:
        """Publishes a version, which is newer than those before, for all releases."""
        self.repository.publish(packages)
        self.newest = packages

    def close(self) -> None:
        """End everything."""
        self.repository.close()
        for host in reversed(self._hosts):
            host.delete()


@pytest.fixture(scope="module")
def network(
    previous_packages: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Network]:
    """A repository with the previous version, and two in other folders that nobody must trust."""
    if reason := why_no_boot():
        pytest.skip(reason)
    for command in ("reprepro", "gpg", "gpg-agent"):
        if shutil.which(command) is None:
            pytest.skip(f"the command {command} (Debian package of that name) is missing")
    network = Network(tmp_path_factory.mktemp("apt"))
    try:
        network.publish(previous_packages)
        network.repository.forge_signature("forged")
        network.repository.change_packages("changed")
        yield network
    finally:
        network.close()


@pytest.fixture(scope="module")
def hosts(network: Network) -> dict[str, Machine]:
    """A host of each release, with the repository's key."""
    machines = {suite: network.boot(suite, "by-hand") for suite in SUITES}
    for machine in machines.values():
        machine.copy_in(network.repository.key, "/etc/apt/keyrings/socks-tunnel.gpg")
    return machines


@pytest.fixture(params=SUITES)
def host(request: pytest.FixtureRequest, hosts: dict[str, Machine]) -> Machine:
    return hosts[request.param]


@pytest.fixture(scope="module")
def published(network: Network, packages: dict[str, Path]) -> dict[str, Path]:
    """This version's packages, once they are in the repository too."""
    network.publish(packages)
    return packages


def upstream(packages: Mapping[str, Path]) -> str:
    """The upstream version of packages."""
    return version_of(packages["trixie"]).partition("-")[0]


def installed_version(machine: Machine) -> str:
    """What dpkg says is installed; empty if nothing is."""
    return machine.sh(
        "dpkg-query --show --showformat='${Version}' socks-tunnel 2>/dev/null || true"
    )


def running_version(machine: Machine, instance: str) -> str:
    """The upstream version that an instance says it is; empty while none answers."""
    status = machine.sh(f"socks-tunnel status --json --instance {instance}", check=False)
    found = re.search(r'"version": "(.*)"', status)
    return found[1] if found else ""


def unattended(containing: str, **words: str) -> str:
    """Commands of the page, with the answer that an administrator would give."""
    return shown_commands(containing, **words).replace("apt-get install", "apt-get install --yes")


def own_files(machine: Machine) -> str:
    """Hashes of all that belongs to the administrator."""
    return machine.sh("cd /etc/socks-tunnel && sha256sum *")


def wait_active(machine: Machine, unit: str) -> None:
    """Waits until a unit is active."""
    wait_until(
        lambda: machine.property(unit, "ActiveState") == "active",
        f"{unit} is active",
        timeout=START_TIMEOUT,
        interval=0.2,
    )


def wait_running_version(machine: Machine, instance: str, wanted: str) -> None:
    """Waits until an instance says that it is this upstream version."""
    wait_until(
        lambda: running_version(machine, instance) == wanted,
        f"version {wanted} of {instance}",
        timeout=START_TIMEOUT,
        interval=0.2,
    )


def purge(machine: Machine) -> None:
    """Makes the host such as has never had the package."""
    if installed_version(machine):
        machine.sh(
            "export DEBIAN_FRONTEND=noninteractive; apt-mark unhold socks-tunnel; "
            "apt-get purge --yes socks-tunnel 2>&1 && rm -rf /etc/socks-tunnel"
        )


def preset(machine: Machine, key: Path) -> None:
    """Writes what an image has, or a preseeded installation: a key, a configuration, and an enabled unit."""
    write_key(key)
    machine.write("/etc/socks-tunnel/gateway.key", key.read_text(), mode=0o600)
    machine.write("/etc/socks-tunnel/gateway.toml", CONFIGURATION)
    machine.sh(
        "ln -sf /usr/lib/systemd/system/socks-tunnel@.service"
        f" /etc/systemd/system/multi-user.target.wants/{UNIT}"
    )


@pytest.fixture
def with_previous(host: Machine, previous_packages: dict[str, Path], tmp_path: Path) -> Machine:
    """A host that runs the previous version, from the repository."""
    version = version_of(previous_packages[host.suite])
    if installed_version(host) != version:
        purge(host)
        preset(host, tmp_path / "key")
        host.write(SOURCE, source(host.suite))
        host.sh(
            "export DEBIAN_FRONTEND=noninteractive; apt-get update 2>&1 && "
            f"apt-get install --yes --no-install-recommends socks-tunnel={version} 2>&1"
        )
    host.sh("apt-mark unhold socks-tunnel && systemctl start socks-tunnel@gateway")
    return host


# --- apt --------------------------------------------------------------------------------------


def test_an_upgrade_of_the_distribution_upgrades_the_package(packages: dict[str, Path]) -> None:
    older, newer = (version_of(packages[suite]) for suite in SUITES)
    assert older.replace("~deb12u1", "") == newer.replace("~deb13u1", "")
    subprocess.run(["dpkg", "--compare-versions", older, "lt", newer], check=True)


def test_apt_refuses_a_repository_that_another_key_signed(host: Machine) -> None:
    purge(host)
    host.sh("rm -rf /var/lib/apt/lists/*")  # what apt knows of the repository as it should be
    host.write(SOURCE, source(host.suite, "forged"))
    printed = host.sh("apt-get update 2>&1; echo exit status $?")
    assert UNKNOWN_KEY[host.suite] in printed
    assert "is not signed" in printed
    assert printed.endswith("exit status 100")
    assert "Unable to locate package" in host.sh(
        "apt-get install --yes socks-tunnel 2>&1", check=False
    )


def test_apt_refuses_a_package_that_was_changed(host: Machine) -> None:
    purge(host)
    host.write(SOURCE, source(host.suite, "changed"))
    host.sh("apt-get update 2>&1")
    printed = host.sh("apt-get install --yes socks-tunnel 2>&1; echo exit status $?")
    assert "Hash Sum mismatch" in printed
    assert printed.endswith("exit status 100")
    assert installed_version(host) == ""


def test_apt_installs_beside_files_that_are_there_already(
    host: Machine, network: Network, tmp_path: Path
) -> None:
    purge(host)
    preset(host, tmp_path / "key")
    files = own_files(host)
    host.write(SOURCE, source(host.suite))
    printed = host.sh(unattended("--no-install-recommends"))
    assert "WARNING" not in printed  # as apt says of packages that nobody vouches for
    newest = network.newest[host.suite]
    assert installed_version(host) == version_of(newest)
    assert own_files(host) == files
    assert host.sh("stat -c '%U:%G %a' /etc/socks-tunnel") == "root:socks-tunnel 750"
    assert host.sh(f"systemctl is-enabled {UNIT}") == "enabled"
    wait_active(host, UNIT)
    wait_running_version(host, "gateway", upstream(network.newest))


def test_upgrade_and_way_back(
    with_previous: Machine, previous_packages: dict[str, Path], published: dict[str, Path]
) -> None:
    host = with_previous
    old, new = version_of(previous_packages[host.suite]), version_of(published[host.suite])
    files = own_files(host)

    def move(commands: str, version: str) -> None:
        pid = host.main_pid(UNIT)
        since = host.cursor()
        host.sh(commands)
        assert installed_version(host) == version
        wait_active(host, UNIT)
        assert host.main_pid(UNIT) == pid
        wait_running_version(host, "gateway", version.partition("-")[0])
        journal = host.wait_journal("has taken the place of", UNIT, since)
        assert "draining" not in journal
        assert "Traceback" not in journal
        assert own_files(host) == files

    move("apt-get update 2>&1 && apt-get upgrade --yes 2>&1", new)
    back = unattended("apt-mark hold socks-tunnel\n", **{"0.0.9-1~deb13u1": old})
    move(back, old)
    # The version stays, until somebody wants another.
    host.sh("apt-get upgrade --yes 2>&1")
    assert installed_version(host) == old
    host.sh("systemctl stop socks-tunnel@gateway")


# --- the playbook -----------------------------------------------------------------------------


class Fleet:
    """An endpoint on Debian 12, a gateway on Debian 13, and a controller with a copy of the playbook."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.endpoint = network.boot("bookworm", "endpoint")
        self.gateway = network.boot("trixie", "gateway")
        join(self.endpoint, self.gateway, "link0", "link0", "10.77.0", "fd77")
        self.gateway.sh(f"echo {GATEWAY_ADDRESS} endpoint-1.example.com >>/etc/hosts")
        network.repository.run(shown_commands("cp -r packaging/ansible fleet"))
        self._playbook = network.repository.directory / "fleet" / "site.yml"
        self._directory = directory
        self._controller = self._make_controller("with-cache", FACT_CACHE)

    def _make_controller(self, name: str, configuration: str) -> Controller:
        directory = self._directory / name
        directory.mkdir()
        inventory = {
            "endpoints": {"endpoint-1": self.endpoint},
            "gateways": {"laptop-17": self.gateway},
        }
        return Controller(directory, inventory, configuration)

    def forget_facts(self) -> None:
        """From here on have a controller that knows nothing but what hosts tell it in the same run."""
        self._controller = self._make_controller("without-cache", "")

    @property
    def instances(self) -> tuple[tuple[Machine, str], ...]:
        """Each host with its instance."""
        return (self.endpoint, "endpoint"), (self.gateway, "gateway")

    def play(self, version: str, *options: str) -> Play:
        """Have this version on all hosts."""
        return self._controller.play(
            self._playbook,
            *options,
            socks_tunnel_repository=f"http://{NAME}/debian",
            socks_tunnel_version=f"{version}-1~*",
        )

    def pids(self) -> list[int]:
        """The supervisors."""
        return [m.main_pid(f"socks-tunnel@{name}.service") for m, name in self.instances]

    def files(self) -> list[str]:
        """Hashes of what belongs to the administrator."""
        return [own_files(machine) for machine, _ in self.instances]

    def assert_runs(self, packages: Mapping[str, Path]) -> None:
        """Assert that all hosts have, hold and run a version, and that the link is up."""
        version = upstream(packages)
        for machine, instance in self.instances:
            assert installed_version(machine) == version_of(packages[machine.suite])
            assert machine.sh("apt-mark showhold") == "socks-tunnel"
            wait_running_version(machine, instance, version)
            assert "Traceback" not in machine.journal(f"socks-tunnel@{instance}.service")
        wait_until(
            lambda: (
                f'"remote_software": "socks-tunnel/{version}"'
                in self.gateway.sh("socks-tunnel status --json --instance gateway")
            ),
            f"a link to version {version}",
            timeout=START_TIMEOUT,
            interval=0.2,
        )

    def have(self, packages: Mapping[str, Path]) -> None:
        """Has all hosts made, with that version, if they are not yet so."""
        wanted = [version_of(packages[machine.suite]) for machine, _ in self.instances]
        if [installed_version(machine) for machine, _ in self.instances] != wanted:
            play = self.play(upstream(packages))
            assert play.status == 0, play.output
        self.assert_runs(packages)


@pytest.fixture(scope="module")
def fleet(
    network: Network, published: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Fleet:
    return Fleet(network, tmp_path_factory.mktemp("controller"))


def test_the_playbook_makes_a_fleet(fleet: Fleet, previous_packages: dict[str, Path]) -> None:
    for machine, _ in fleet.instances:
        purge(machine)
    play = fleet.play(upstream(previous_packages))
    assert min(play.changed.values()) > 3
    fleet.assert_runs(previous_packages)


@pytest.mark.parametrize("way", ["upgrade", "back"])
def test_the_playbook_moves_a_fleet(
    fleet: Fleet, previous_packages: dict[str, Path], packages: dict[str, Path], way: str
) -> None:
    before, version = previous_packages, packages
    if way == "back":
        before, version = version, before
    fleet.have(before)
    files, pids = fleet.files(), fleet.pids()
    play = fleet.play(upstream(version))
    assert play.changed == {"endpoint-1": 2, "laptop-17": 2}, "the package, and that it is held"
    moves = re.findall(r"Install the version that is wanted\] \**\nchanged: \[(.*)\]", play.output)
    assert moves == ["endpoint-1", "laptop-17"]
    fleet.assert_runs(version)
    assert fleet.files() == files
    assert fleet.pids() == pids, "programs are replaced in place"


def test_the_playbook_changes_nothing_twice(
    fleet: Fleet, previous_packages: dict[str, Path]
) -> None:
    fleet.have(previous_packages)
    play = fleet.play(upstream(previous_packages))
    assert play.changed == {"endpoint-1": 0, "laptop-17": 0}, play.output


def test_a_host_that_fails_ends_the_move(fleet: Fleet, previous_packages: dict[str, Path]) -> None:
    fleet.have(previous_packages)
    pids = fleet.pids()
    play = fleet.play("99")  # nobody published that
    assert play.status != 0
    assert [play.counters[host]["failed"] for host in ("endpoint-1", "laptop-17")] == [1, 0]
    assert "Gateways, in growing batches" not in play.output
    assert fleet.pids() == pids


def test_a_gateway_that_is_off_is_not_forgotten(
    fleet: Fleet, previous_packages: dict[str, Path]
) -> None:
    fleet.have(previous_packages)
    version = upstream(previous_packages)
    files = fleet.files()
    assert fleet.play(version, "--limit", "endpoints").changed == {"endpoint-1": 0}
    fleet.forget_facts()
    play = fleet.play(version, "--limit", "endpoints")
    assert play.status != 0
    assert "'socks_tunnel_public_key'" in play.output
    assert fleet.files() == files
