"""The package under Debian's own tools, piuparts and autopkgtest, and on hosts with several instances.

The tests of one release's host share it: the package is upgraded, removed, installed again, and in the end
purged in every way, each time from the state that a removal left. In the order of this file, which pytest
and xdist keep, little has to be installed again; each test is right alone and in any other order too.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.installed import START_TIMEOUT, SUITES, Host, limits_drop_in
from support.machines import TOOLS, Machine
from support.processes import SOCKS_TUNNEL, wait_until
from support.workshop import Workshop

pytestmark = [pytest.mark.netns, pytest.mark.timeout(1500)]

DEBIAN = TOOLS.parent / "debian"
CONFFILE = "/etc/needrestart/conf.d/socks-tunnel.conf"
QUESTION = "socks-tunnel/delete-configuration"
STAYS = "configurations and keys stay in /etc/socks-tunnel"
FILES = [
    *("endpoint.key", "endpoint.toml", "gateway.key", "gateway.toml"),
    *("rendezvous.toml", "spare.key", "spare.toml"),
]
RENDEZVOUS = "socks-tunnel-rendezvous.service"

STATE = (
    "var/lib/dpkg var/cache/debconf etc/socks-tunnel etc/logrotate.d/socks-tunnel "
    "etc/needrestart/conf.d/socks-tunnel.conf"
)
"""Where dpkg, debconf and the administrator keep what is there after a removal; and the package's
configuration files, which dpkg would take for deleted by hand if it knew of them and they were gone."""

LEFT = "/var/tmp/left"
"""Where that is saved."""

RESTORE = f"cd / && rm -rf {STATE} && cp -a {LEFT}/* /"

RENDEZVOUS_CONFIGURATION = """
listen = "127.0.0.1:8443"
clients = "any"
"""

EVERY_RELEASE = "SOCKS_TUNNEL_EVERY_RELEASE" in os.environ
"""What a release hardly changes is tested on one of them, unless this is asked for: it saves a minute."""


# --- piuparts and autopkgtest -----------------------------------------------------------------


def test_piuparts_finds_nothing(quality: Workshop) -> None:
    for report in quality.piuparts.result():
        assert report == [
            "PASS: Installation and purging test.",
            "PASS: Installation, upgrade and purging tests.",
            "PASS: All tests.",
        ]


@pytest.mark.parametrize("suite", SUITES if EVERY_RELEASE else ["bookworm"])
def test_autopkgtest(packages: Mapping[str, Path], suite: str) -> None:
    machine = boot(suite)
    try:
        # The tests of the source package, and debian/files, which says that nothing has to be built.
        tree = machine.root / "var/tmp/socks-tunnel"
        shutil.copytree(DEBIAN, tree / "debian")
        (tree / "debian/files").touch()
        machine.copy_in(packages[suite], "/var/tmp/socks-tunnel.deb")
        # There is no network, so nothing but the package can be had. The server `null` of Debian 13
        # does not know that it is in a container.
        said = machine.sh(
            "rm -f /etc/apt/sources.list /etc/apt/sources.list.d/* && cd /var/tmp && "
            "autopkgtest --ignore-restrictions=isolation-container "
            "./socks-tunnel.deb ./socks-tunnel -- null 2>&1",
            timeout=900,
        )
    finally:
        machine.delete()
    summary = said.rpartition("@@ summary\n")[2].splitlines()[:2]
    assert [line.split() for line in summary] == [["commands", "PASS"], ["tunnel", "PASS"]]


def boot(suite: str) -> Machine:
    """Boot a host on which units of the package can be started."""
    machine = Machine("qa", suite)
    machine.write("/etc/systemd/system/socks-tunnel@.service.d/test.conf", limits_drop_in())
    return machine


# --- several instances ------------------------------------------------------------------------


class Office:
    """A host with a gateway and an endpoint that are linked, and a third instance that does not run."""

    def __init__(self, suite: str) -> None:
        self.suite = suite
        self.newest = ""
        """Where the package of this version is on the host."""
        self.machine = boot(suite)
        self.gateway, self.endpoint, self.spare = (
            Host(self.machine, name) for name in ("gateway", "endpoint", "spare")
        )

    def prepare(self, package: Path, newest: Path) -> None:
        """Install a package; as on an image for a fleet, configurations, keys and links are there first.

        `newest` is copied for :meth:`come_up` and for tests.
        """
        self.newest = f"/var/tmp/{newest.name}"
        self.machine.copy_in(newest, self.newest)
        folder = self.machine.root / "etc/socks-tunnel"
        pair = (SOCKS_TUNNEL, "pair", "--gateway", folder, "--endpoint", folder)
        subprocess.run([*pair, "--url", "http://127.0.0.1:8765/"], check=True, capture_output=True)
        self.machine.sh(
            "cd /etc/socks-tunnel && cp endpoint.key spare.key && "
            "sed 's/endpoint.key/spare.key/; s/8765/8766/; s/9465/9466/' endpoint.toml >spare.toml"
        )
        self.machine.write("/etc/socks-tunnel/rendezvous.toml", RENDEZVOUS_CONFIGURATION)
        self.machine.write(f"/etc/systemd/system/{RENDEZVOUS}.d/test.conf", limits_drop_in())
        self.enable()
        self.gateway.install(package)

    def enable(self) -> None:
        """Makes the links that `systemctl enable` makes, of those units that are to run."""
        units = "/usr/lib/systemd/system"
        wants = "/etc/systemd/system/multi-user.target.wants"
        links = "\n".join(
            f"ln -sf {units}/socks-tunnel@.service {wants}/{host.unit}" for host in self.running
        )
        self.machine.sh(
            f"set -e\nmkdir -p {wants}\n{links}\nln -sf {units}/{RENDEZVOUS} {wants}/{RENDEZVOUS}"
        )

    def is_installed(self) -> bool:
        """Returns whether the package is."""
        status = "dpkg-query --show --showformat '${Status}' socks-tunnel"
        return self.machine.sh(status, check=False) == "install ok installed"

    def come_up(self) -> None:
        """Has the package installed, and waits until that runs which is enabled."""
        if not self.is_installed():
            self.machine.sh(f"test ! -d {LEFT} || {{ {RESTORE}; }}")
            self.enable()
            self.machine.sh(f"DEBIAN_FRONTEND=noninteractive dpkg --install {self.newest} 2>&1")
        self.wait_states("active", "active", "inactive")
        self.wait_rendezvous("active")

    def remove(self) -> None:
        """Removes the package if it is installed, and saves what is left then."""
        if self.is_installed():
            self.machine.sh("apt-get remove --yes socks-tunnel 2>&1")
            self.machine.sh(
                f"rm -rf {LEFT} && mkdir {LEFT} && cd / && cp -a --parents {STATE} {LEFT}"
            )

    @property
    def running(self) -> tuple[Host, Host]:
        """The instances that run, in the order of their names."""
        return self.endpoint, self.gateway

    def files(self) -> str:
        """What is in the administrator's files."""
        return self.machine.sh(f"sha256sum /etc/socks-tunnel/* {CONFFILE}")

    def upgrades(self, host: Host) -> int:
        """How often the program of an instance was replaced in place."""
        status = json.loads(self.machine.sh(f"socks-tunnel status --json --instance {host.role}"))
        count: int = status["upgrades"]
        return count

    def maintainer_script(self, name: str, *arguments: str) -> str:
        """Run one of the installed package's scripts as dpkg does."""
        return self.machine.sh(
            f"DPKG_MAINTSCRIPT_PACKAGE=socks-tunnel DPKG_MAINTSCRIPT_NAME={name} "
            f"/var/lib/dpkg/info/socks-tunnel.{name} {' '.join(arguments)}"
        )

    def states(self) -> list[str]:
        """The state of each instance, in the order of their names."""
        return [host.state for host in (self.endpoint, self.gateway, self.spare)]

    def wait_states(self, *wanted: str) -> None:
        """Waits until the instances are in these states."""
        wait_until(
            lambda: self.states() == list(wanted),
            f"{wanted} of endpoint, gateway and spare",
            timeout=START_TIMEOUT,
            interval=0.1,
        )

    def rendezvous(self) -> int:
        """The process id of the rendezvous service; 0 if it does not run."""
        return self.machine.main_pid(RENDEZVOUS)

    def wait_rendezvous(self, wanted: str) -> None:
        """Waits until the rendezvous service is in a state."""
        wait_until(
            lambda: self.machine.property(RENDEZVOUS, "ActiveState") == wanted,
            f"the rendezvous service {wanted}",
            timeout=START_TIMEOUT,
            interval=0.1,
        )

    def wait_upgrades(self, wanted: list[int]) -> None:
        """Waits until the programs of the instances that run were replaced so often."""
        wait_until(
            lambda: [self.upgrades(host) for host in self.running] == wanted,
            f"{wanted} replacements",
            timeout=START_TIMEOUT,
            interval=0.2,
        )

    def wait_nothing(self, command: str) -> None:
        """Waits until a command prints nothing."""
        wait_until(
            lambda: self.machine.sh(command) == "",
            f"nothing printed by {command}",
            timeout=START_TIMEOUT,
            interval=0.2,
        )

    def break_configuration(self, host: Host) -> None:
        """Put a line that is no setting first."""
        self.machine.sh(f"sed -i '1i drain_timout = 3' /etc/socks-tunnel/{host.role}.toml")

    def mend_configuration(self, host: Host) -> None:
        """Take that line away."""
        self.machine.sh(f"sed -i 1d /etc/socks-tunnel/{host.role}.toml")


@pytest.fixture(scope="module", params=SUITES if EVERY_RELEASE else ["trixie"])
def opened(
    request: pytest.FixtureRequest,
    previous_packages: Mapping[str, Path],
    packages: Mapping[str, Path],
) -> Iterator[Office]:
    """The host, in whatever state the last test left it; at first it has the previous version."""
    office = Office(request.param)
    try:
        office.prepare(previous_packages[request.param], packages[request.param])
        yield office
    finally:
        office.machine.delete()


@pytest.fixture
def office(opened: Office) -> Office:
    """The host with some version installed, and all running that is enabled."""
    opened.come_up()
    return opened


def test_what_was_enabled_before_is_started(office: Office) -> None:
    assert office.states() == ["active", "active", "inactive"]
    assert office.machine.sh("stat -c '%U:%G %a' /etc/socks-tunnel") == "root:socks-tunnel 750"


def test_the_rendezvous_service_reads_its_configuration_again(office: Office) -> None:
    machine = office.machine
    pid, since = office.rendezvous(), machine.cursor()
    machine.sh("sed -i '1i nonsense = 1' /etc/socks-tunnel/rendezvous.toml")
    machine.sh(f"systemctl reload {RENDEZVOUS}")
    machine.wait_journal("reload refused: ", RENDEZVOUS, since)
    machine.wait_journal("nonsense: unknown key", RENDEZVOUS, since)
    machine.sh("sed -i 1d /etc/socks-tunnel/rendezvous.toml")
    office.wait_rendezvous("active")
    machine.sh(f"systemctl reload {RENDEZVOUS}")
    machine.wait_journal("reloaded: 0 keys", RENDEZVOUS, since)
    office.wait_rendezvous("active")
    assert office.rendezvous() == pid


def test_an_upgrade_replaces_one_after_another(
    office: Office, previous_packages: Mapping[str, Path], packages: Mapping[str, Path]
) -> None:
    """Instances get the new program in place; the rendezvous service is restarted."""
    office.gateway.install(previous_packages[office.suite])  # nothing happens if it is that one
    office.come_up()
    pids = [host.pid for host in office.running]
    before = [office.upgrades(host) for host in office.running]
    rendezvous = office.rendezvous()
    office.spare.systemctl("enable")  # yet it has been stopped
    office.machine.sh(f"echo '# mine' >>{CONFFILE}")
    files = office.files()
    printed = office.gateway.install(packages[office.suite])
    office.wait_states("active", "active", "inactive")
    assert [host.pid for host in office.running] == pids
    assert printed.count("has taken the place of") == 2, printed
    office.wait_upgrades([count + 1 for count in before])
    office.wait_rendezvous("active")
    assert office.rendezvous() != rendezvous
    assert office.spare.unit not in printed
    assert office.files() == files
    office.spare.systemctl("disable")


def test_one_that_cannot_be_replaced_goes_on(office: Office) -> None:
    """Its configuration is broken: the new program refuses it before the old one has gone."""
    first, second = office.running
    office.break_configuration(first)
    files = office.files()
    pids = first.pid, second.pid
    before = office.upgrades(first), office.upgrades(second)
    printed = office.machine.sh(
        f"DEBIAN_FRONTEND=noninteractive apt-get install --yes --reinstall {office.newest} 2>&1"
    )
    assert f"{first.unit} goes on with the version that it runs" in printed, printed
    office.wait_states("active", "active", "inactive")
    assert (first.pid, second.pid) == pids
    office.wait_upgrades([before[0], before[1] + 1])
    assert office.is_installed()
    assert office.files() == files
    office.mend_configuration(first)


def test_policy_rc_d_and_statoverrides_are_respected(office: Office) -> None:
    machine = office.machine
    pids = [host.pid for host in office.running]
    machine.write("/usr/sbin/policy-rc.d", "#!/bin/sh\nexit 101\n", mode=0o755)
    machine.sh("dpkg-statoverride --update --add root adm 0710 /etc/socks-tunnel")
    office.maintainer_script("postinst", "configure", "0.0.9-1")
    assert [host.pid for host in office.running] == pids
    assert machine.sh("stat -c '%U:%G %a' /etc/socks-tunnel") == "root:adm 710"
    machine.sh("rm /usr/sbin/policy-rc.d && dpkg-statoverride --remove /etc/socks-tunnel")
    office.maintainer_script("postinst", "abort-upgrade", "0.0.9-1")
    assert [host.pid for host in office.running] == pids
    machine.sh("chgrp socks-tunnel /etc/socks-tunnel && chmod 750 /etc/socks-tunnel")


def test_a_removal_that_is_called_off(office: Office) -> None:
    office.maintainer_script("prerm", "remove")
    office.wait_states("inactive", "inactive", "inactive")
    office.wait_rendezvous("inactive")
    office.maintainer_script("postinst", "abort-remove")
    office.wait_states("active", "active", "inactive")
    office.wait_rendezvous("active")


def test_remove_stops_all(office: Office) -> None:
    office.break_configuration(office.spare)
    office.spare.systemctl("start", check=False)
    office.wait_states("active", "active", "failed")
    office.mend_configuration(office.spare)
    office.remove()
    office.wait_nothing("pgrep --uid socks-tunnel --list-full || true")
    office.wait_nothing(
        f"systemctl list-units --no-legend 'socks-tunnel@*' {RENDEZVOUS} sockstunnel.slice"
    )


def test_installing_again_starts_what_is_enabled(opened: Office) -> None:
    opened.remove()
    opened.come_up()


# --- purge ------------------------------------------------------------------------------------


@pytest.fixture
def removal(opened: Office) -> Machine:
    """The host as a removal leaves it."""
    opened.remove()
    opened.machine.sh(RESTORE)
    return opened.machine


@pytest.fixture
def removed(removal: Machine) -> Iterator[Machine]:
    """The host as a removal leaves it. At the end of the test, dpkg and debconf know nothing of it."""
    assert removal.sh("dpkg-query --show --showformat '${Status}' socks-tunnel") == (
        "deinstall ok config-files"
    )
    yield removal
    assert removal.sh("debconf-show socks-tunnel") == ""
    assert "socks-tunnel" not in removal.sh("dpkg-query --show")


def test_the_rule_for_logrotate_is_good_after_a_removal(removal: Machine) -> None:
    """It is a configuration file, and stays until the purge."""
    told = removal.sh("logrotate --state /var/tmp/status /etc/logrotate.d/socks-tunnel 2>&1")
    assert told == ""


def configuration(machine: Machine) -> list[str]:
    """The names in /etc/socks-tunnel; none if it is gone."""
    return machine.sh("ls -A /etc/socks-tunnel 2>/dev/null || true").split()


def purge(machine: Machine, *, answer: str = "", frontend: str = "noninteractive") -> str:
    """Purge on a terminal, and answer the question once it is there; what was printed."""
    command = ("timeout", "300", "script", "--quiet", "--return", "/dev/null", "--command")
    printed = ""
    with subprocess.Popen(
        machine.enter(
            *("env", "TERM=vt100", f"DEBIAN_FRONTEND={frontend}"),
            *(*command, "apt-get purge --yes socks-tunnel"),
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), 65_536).decode(errors="replace"):
            printed += piece
            if answer and "[yes/no]" in printed:
                process.stdin.write(f"{answer}\n".encode())
                process.stdin.flush()
                answer = ""
    assert process.returncode == 0, printed
    return printed


def preseed(machine: Machine) -> None:
    """Say yes beforehand."""
    machine.sh(f"echo 'socks-tunnel {QUESTION} boolean true' | debconf-set-selections")


def test_purge_keeps_keys_where_nobody_is_asked(removed: Machine) -> None:
    assert STAYS in purge(removed)
    assert configuration(removed) == FILES


def test_purge_deletes_keys_if_that_was_answered_beforehand(removed: Machine) -> None:
    preseed(removed)
    assert "/etc/socks-tunnel are deleted" in purge(removed)
    assert not (removed.root / "etc/socks-tunnel").exists()


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_purge_asks(removed: Machine, answer: str) -> None:
    printed = purge(removed, answer=answer, frontend="readline")
    assert "Delete the configurations and private keys" in printed
    assert configuration(removed) == ([] if answer == "yes" else FILES)
    assert (STAYS in printed) == (answer == "no")


def test_purge_asks_nothing_where_nothing_is_left(removed: Machine) -> None:
    removed.sh("rm /etc/socks-tunnel/*")
    printed = purge(removed, frontend="readline")
    assert "Delete the configurations" not in printed
    assert STAYS not in printed
    assert not (removed.root / "etc/socks-tunnel").exists()


def test_purge_leaves_what_a_link_leads_to(removed: Machine) -> None:
    removed.sh("mv /etc/socks-tunnel /srv/ && ln -s /srv/socks-tunnel /etc/socks-tunnel")
    preseed(removed)
    assert "stay in /srv/socks-tunnel" in purge(removed)
    assert removed.sh("ls /srv/socks-tunnel").split() == FILES
    removed.sh("rm -r /srv/socks-tunnel")


def test_purge_without_debconf(removed: Machine) -> None:
    preseed(removed)
    removed.sh("mv /usr/share/debconf /usr/share/debconf.away")
    try:
        assert STAYS in purge(removed)
    finally:
        removed.sh("mv /usr/share/debconf.away /usr/share/debconf")
        removed.sh("echo PURGE | debconf-communicate socks-tunnel")
    assert configuration(removed) == FILES


def test_purge_may_be_repeated(removed: Machine) -> None:
    removed.sh("cp /var/lib/dpkg/info/socks-tunnel.postrm /var/tmp/")
    purge(removed)
    for _ in range(2):
        assert STAYS in removed.sh(
            "DEBCONF_PACKAGE=socks-tunnel /var/tmp/socks-tunnel.postrm purge"
        )
    assert configuration(removed) == FILES
