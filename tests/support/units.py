"""Tunnels of the system tests as hosts have them: the installed package, each side a hardened unit."""

import contextlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from support import audit_records
from support.installed import START_TIMEOUT, SUITES, install, limits_drop_in
from support.machines import BootedHosts, Machine
from support.processes import Instance, wait_until
from support.tunnels import Home, Settings, Site

LOW_PORTS = "/usr/share/doc/socks-tunnel/examples/low-ports.conf"

# The unit is left as it is, but for two things: what it says goes to a file that the tests can read
# without asking journald, and that is complete, because a flood of messages is not suppressed there.
DROP_IN = "StandardError=append:/var/log/socks-tunnel-%i.log\n"

# The program's interpreter takes no options from the environment (-I): warnings about what it forgot
# to close or to await are switched on in its private environment.
WARNINGS = "import warnings; warnings.simplefilter('default')\n"


class Unit(Instance):
    """An instance that systemd runs on a booted host."""

    def __init__(self, machine: Machine, instance: str) -> None:
        """Start it, without waiting for it to be ready."""
        self.name = instance
        self.unit = f"socks-tunnel@{instance}.service"
        self.machine = machine
        self.config = machine.root / f"etc/socks-tunnel/{instance}.toml"
        self.log = machine.root / f"var/log/socks-tunnel-{instance}.log"
        self.runtime_directory = machine.root / f"run/socks-tunnel/{instance}"
        self._pid = 0
        machine.sh(f"systemctl start --no-block {self.unit}")

    @property
    def pid(self) -> int:
        """The supervisor's process id, in this machine's numbers."""
        if not self._pid:
            inside = wait_until(
                lambda: self.machine.main_pid(self.unit),
                f"a main process of {self.unit}",
                timeout=START_TIMEOUT,
                interval=0.05,
            )
            self._pid = self.machine.outside(inside)
        return self._pid

    def log_text(self) -> str:
        """All that it and its children wrote; nothing yet if systemd has not begun to start it."""
        return super().log_text() if self.log.exists() else ""

    def _state(self) -> str:
        return self.machine.property(self.unit, "ActiveState")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the supervisor."""
        os.kill(self.pid, number)

    def wait_ready(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until the unit is active."""

        def probe() -> bool:
            state = self._state()
            assert state != "failed", f"{self.unit} failed:\n{self.tail()}"
            return state == "active"

        wait_until(probe, f"{self.unit} active", timeout=timeout, interval=0.05)
        assert self.pid

    def wait_stopping(self) -> None:
        """Wait until systemd knows that the unit is stopping."""
        wait_until(lambda: self._state() == "deactivating", f"{self.unit} stopping", interval=0.05)

    def status_line(self) -> str:
        """The status that `systemctl status` shows."""
        return self.machine.property(self.unit, "StatusText")

    def reload(self) -> None:
        """`systemctl reload`."""
        self.machine.sh(f"systemctl reload {self.unit}")

    def ends_within(self, timeout: float) -> bool:
        """Whether the unit becomes inactive by itself in so many seconds."""
        try:
            wait_until(
                lambda: self._state() in {"inactive", "failed"},
                "the end of a unit",
                timeout=timeout,
                interval=0.1,
            )
        except AssertionError:
            return False
        return True

    def wait(self, timeout: float = 30) -> int:
        """The supervisor's exit status, once the unit has become inactive by itself."""
        if not self.ends_within(timeout):
            raise AssertionError(f"{self.name} still runs after {timeout} s:\n{self.tail()}")
        return int(self.machine.property(self.unit, "ExecMainStatus"))

    def stop(self, timeout: float = START_TIMEOUT) -> None:
        """`systemctl stop`, which must find nothing to kill."""
        self.machine.sh(f"systemctl stop {self.unit}", timeout=timeout)
        shown = self.machine.properties(self.unit, "Result", "ExecMainStatus")
        assert shown == {"Result": "success", "ExecMainStatus": "0"}, f"{shown}\n{self.tail()}"
        self.assert_clean()

    def kill(self) -> None:
        """End whatever is left of it."""
        with contextlib.suppress(AssertionError):  # it may not run any more
            self.machine.sh(f"systemctl kill --signal=KILL {self.unit} 2>&1")
        self.machine.sh(f"systemctl stop {self.unit}; systemctl reset-failed {self.unit} || true")


class UnitHome(Home):
    """A host with the package: files are under /etc/socks-tunnel, the program is a unit."""

    def __init__(self, machine: Machine, instance: str) -> None:
        super().__init__(machine, machine.root / "etc/socks-tunnel", instance)
        self.machine = machine

    @property
    def runtime_directory(self) -> Path:
        """Its runtime directory, on its host."""
        return Path(f"/run/socks-tunnel/{self.instance}")

    @property
    def state_directory(self) -> Path:
        """Its state directory, on its host."""
        return Path(f"/var/lib/socks-tunnel/{self.instance}")

    def put(self, name: str, text: str) -> Path:
        """Write a file that the service's user can read, as an administrator would."""
        self.machine.write(f"/etc/socks-tunnel/{name}", text, mode=0o640, owner="root:socks-tunnel")
        return self.folder / name

    def start(self, settings: Settings) -> Instance:
        """Start the unit; with the drop-in from the documentation if it wants ports below 1024."""
        listeners = [str(table["listen"]) for table in settings.get("forwards", ())]
        if any(int(listener.rpartition(":")[2]) < 1024 for listener in listeners):
            folder = f"/etc/systemd/system/socks-tunnel@{self.instance}.service.d"
            self.machine.sh(f"install -D -m 644 -t {folder} {LOW_PORTS} && systemctl daemon-reload")
        return Unit(self.machine, self.instance)


class InstalledSite(Site):
    """As :class:`Site`, but gateway and endpoint are booted, with the package installed."""

    hosts: BootedHosts

    def __init__(self, packages: Mapping[str, Path]) -> None:
        # A gateway on the older release and an endpoint on the newer one; tests/packaging has both ways.
        super().__init__(BootedHosts(*SUITES))
        try:
            for machine in (self.hosts.gateway, self.hosts.endpoint):
                install(machine, packages[machine.suite])
                machine.write(
                    "/etc/systemd/system/socks-tunnel@.service.d/test.conf",
                    limits_drop_in() + DROP_IN,
                )
                machine.sh("systemctl daemon-reload")
                (site_packages,) = machine.root.glob(
                    "usr/lib/socks-tunnel/lib/python3*/site-packages"
                )
                (site_packages / "zz-warnings.pth").write_text(WARNINGS)
        except BaseException:
            super().close()
            raise

    def close(self) -> None:
        """Holds the audit records in both journals to the schema, and powers everything off."""
        try:
            for machine in (self.hosts.gateway, self.hosts.endpoint):
                audit_records.check(machine.journal())
        finally:
            super().close()

    def home(self, role: str, number: int, directory: Path) -> Home:
        """A place on the host of that role, under an instance name of the tunnel's own."""
        del directory
        machine = self.hosts.gateway if role == "gateway" else self.hosts.endpoint
        return UnitHome(machine, f"{role}-{number}")
