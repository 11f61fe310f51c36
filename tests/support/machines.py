"""Hosts that boot: systemd in a container with its own network namespace, over a throw-away root.

systemd-nspawn does the work, but not as `systemd-nspawn -b` on a machine whose own PID 1 is no systemd:
there is no bus to register at, and control groups may be of the old, hybrid kind. So everything happens
in a mount namespace of its own, where /sys/fs/cgroup is a plain cgroup v2 tree.
"""

import contextlib
import errno
import functools
import itertools
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from support.hosts import Host, ThreeHosts, ip, why_no_namespaces
from support.processes import wait_until

TOOLS = Path(__file__).parents[2] / "packaging" / "tools"

MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")
"""The memory controller of cgroup v1, on machines that have it."""

BOOT_TIMEOUT = 300.0
"""Seconds that a host has to boot, on a machine that does much else."""

COMMAND_TIMEOUT = 300.0
"""Seconds that a command inside has, unless it is said to need more."""

JOURNAL_TIMEOUT = 120.0
"""Seconds that a text has to come into the journal."""

POWER_OFF_TIMEOUT = 60.0
"""Seconds that a host has to power off; then it is killed."""

_numbers = itertools.count()

# What the container's own mount namespace is set up with. The overlay's upper layer is in memory: the
# host is gone with its last process, and dpkg's many fsync calls cost nothing.
_BOOT = r"""
mount -t cgroup2 none /sys/fs/cgroup
mkdir "/sys/fs/cgroup/$NAME"
echo $$ >"/sys/fs/cgroup/$NAME/cgroup.procs"
# nspawn wants a tmpfs for its own notes, and the machine's may not have this folder at all.
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p /run/systemd/nspawn
mount -t tmpfs -o mode=755,size=3g tmpfs "$TOP"
mkdir "$TOP/upper" "$TOP/work" "$TOP/root"
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$TOP/upper,workdir=$TOP/work" "$TOP/root"
echo "$NAME" >"$TOP/root/etc/hostname"
printf '127.0.0.1 localhost %s\n::1 localhost\n' "$NAME" >"$TOP/root/etc/hosts"
exec systemd-nspawn --quiet --boot --machine="$NAME" --directory="$TOP/root" --keep-unit --register=no \
  --private-network --console=pipe --kill-signal=SIGRTMIN+3 --link-journal=no --settings=no \
  --resolv-conf=off --timezone=off --capability=CAP_NET_ADMIN,CAP_BPF,CAP_PERFMON \
  --system-call-filter=bpf
"""

_ENVIRONMENT = ("env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C.UTF-8", "HOME=/root")


@functools.cache
def why_no_boot() -> str | None:
    """Why this machine cannot boot hosts, or None where it can."""
    if reason := why_no_namespaces():
        return reason
    for command, package in (("systemd-nspawn", "systemd-container"), ("mmdebstrap", "mmdebstrap")):
        if shutil.which(command) is None:
            return f"the command {command} (Debian package {package}) is missing"
    if platform.machine() != "x86_64":
        return "the package is for amd64"
    if shutil.which("apt-get") is None:
        return "roots are made from this machine's apt sources, and it has no apt"
    probe = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount -t cgroup2 none /sys/fs/cgroup"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no cgroup v2 here: {probe.stderr.strip()}" if probe.returncode else None


def tool(name: str, *arguments: str | Path, **environment: str) -> list[str]:
    """Run one of packaging/tools; the lines that it prints."""
    done = subprocess.run(
        [str(TOOLS / name), *map(str, arguments)],
        env={"PYTHON": sys.executable} | os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{name}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout.splitlines()


class Machine(Host):
    """A booted host. What it does as a network host (sockets, `run`) is as with any other Host:
    the programs are this machine's, only the network is its own. :meth:`sh` is inside."""

    def __init__(self, role: str, suite: str) -> None:
        self.suite = suite
        self.name = f"stb-{os.getpid()}-{next(_numbers)}-{role}"
        self.leader = 0
        self._etc = Path("/etc/netns") / self.name
        self._top = Path(tempfile.mkdtemp(prefix="socks-tunnel-boot-"))
        (base,) = tool("root", suite, "run")
        self._console = (self._top.parent / f"{self._top.name}.console").open("w+b")
        self._process = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "slave", "bash", "-euc", _BOOT],
            env=os.environ | {"NAME": self.name, "BASE": base, "TOP": str(self._top)},
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            start_new_session=True,
        )
        try:
            self.leader = wait_until(
                self._find_leader, "PID 1 of the container", timeout=BOOT_TIMEOUT
            )
            self._wait_booted()
            ip("netns", "attach", self.name, str(self.leader))
        except BaseException:
            self._kill()
            raise
        self.resolver(None)

    def _find_leader(self) -> int | None:
        if self._process.poll() is not None:
            raise AssertionError(f"{self.name} did not boot\n{self.console()}")
        tasks = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        for child in tasks.read_text().split():
            try:
                status = Path(f"/proc/{child}/status").read_text()
            except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                continue
            pids = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()
            if pids[-1] == "1" and Path(f"/proc/{child}/root/run/systemd/private").exists():
                return int(child)
        return None

    def _wait_booted(self) -> None:
        states: list[str] = []

        def booted() -> bool:
            states.append(self.sh("systemctl is-system-running --wait", check=False))
            return states[-1] in {"running", "degraded"}

        try:
            wait_until(booted, "a host that runs", timeout=BOOT_TIMEOUT, interval=0.5)
        except AssertionError:
            raise AssertionError(f"booted into {states[-1]!r}\n{self.console()}") from None

    @property
    def root(self) -> Path:
        """Where this machine sees the host's file system."""
        return Path(f"/proc/{self.leader}/root")

    def console(self) -> str:
        """What it printed while booting."""
        return Path(self._console.name).read_text("utf-8", "replace")

    def enter(self, *command: str) -> list[str]:
        """The command line that runs `command` inside."""
        return ["nsenter", "--target", str(self.leader), "--all", "--", *_ENVIRONMENT, *command]

    def sh(self, script: str, *, check: bool = True, timeout: float = COMMAND_TIMEOUT) -> str:
        """Run a shell script inside; its output, without the last line break."""
        done = subprocess.run(
            self.enter("sh", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{script}: exit status {done.returncode}\n{done.stdout}")
        return done.stdout.rstrip("\n")

    def write(self, path: str, text: str, *, mode: int = 0o644, owner: str = "root:root") -> None:
        """Write a file inside."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        if owner != "root:root":
            self.sh(f"chown {owner} {path}")

    def copy_in(self, source: Path, path: str) -> None:
        """Copy a file of this machine inside."""
        shutil.copyfile(source, self.root / path.lstrip("/"))

    def resolver(self, nameserver: str | None) -> None:
        """As for any host, and for what runs inside too."""
        super().resolver(nameserver)
        text = (self._etc / "resolv.conf").read_text()
        (self.root / "etc/resolv.conf").write_text(text)

    # --- units --------------------------------------------------------------------------------

    def properties(self, unit: str, *names: str) -> dict[str, str]:
        """What `systemctl show` says of a unit."""
        shown = self.sh(f"systemctl show {unit} --property={','.join(names)}")
        return dict(line.partition("=")[::2] for line in shown.splitlines())

    def property(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.properties(unit, name)[name]

    def main_pid(self, unit: str) -> int:
        """The main process of a unit, by its number inside; 0 if none runs."""
        return int(self.property(unit, "MainPID"))

    def outside(self, pid: int) -> int:
        """The number that this machine has for a process of the host that PID 1 there started."""

        def find() -> int | None:
            children = Path(f"/proc/{self.leader}/task/{self.leader}/children").read_text()
            for child in children.split():
                try:
                    status = Path(f"/proc/{child}/status").read_text()
                except (FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                    continue
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                if int(numbers.split()[-1]) == pid:
                    return int(child)
            return None

        # While children end, the kernel's list may lack others: proc(5) says so of `children`.
        return wait_until(find, f"a child {pid} of PID 1 of {self.name}")

    def children(self, pid: int, containing: str = "") -> list[int]:
        """The child processes of one, by their numbers inside."""
        listing = self.sh(f"ps -o pid=,args= --ppid {pid} || true")
        rows = (line.split(None, 1) for line in listing.splitlines())
        return [int(row[0]) for row in rows if containing in row[1]]

    def journal(self, unit: str = "", since: str = "") -> str:
        """The journal's messages: of a unit, from a cursor on."""
        options = [f"--unit={unit}" if unit else "", f"--after-cursor='{since}'" if since else ""]
        # What a unit wrote just now is in there once journald has taken it.
        return self.sh(
            f"journalctl --sync && journalctl --no-pager --output=cat {' '.join(options)}"
        )

    def wait_journal(self, text: str, unit: str = "", since: str = "") -> str:
        """Waits until the journal has a text, and returns what `journal` would.

        A service writes its lines from a thread, so a line comes later than what it tells of.
        """
        journals: list[str] = []

        def found() -> bool:
            journals[:] = [self.journal(unit, since)]
            return text in journals[0]

        wait_until(
            found,
            f"{text!r} in the journal of {unit or 'the host'}",
            timeout=JOURNAL_TIMEOUT,
            interval=0.2,
        )
        return journals[0]

    def cursor(self) -> str:
        """Where the journal ends now."""
        last = self.sh("journalctl --sync && journalctl --lines=0 --show-cursor --quiet")
        return last.rpartition("-- cursor: ")[2]

    # --- memory -------------------------------------------------------------------------------

    @contextlib.contextmanager
    def memory_group(self) -> Iterator[Path]:
        """A memory control group for what systemd starts on this host during the block.

        A folder of files as the kernel's documentation of cgroup v1 describes them. What still runs
        at the end of the block goes back to where everything else is.
        """
        group = MEMORY_GROUPS / self.name
        group.mkdir()
        try:
            (group / "cgroup.procs").write_text(f"{self.leader}\n")
            yield group
        finally:
            wait_until(lambda: _dissolved(group), f"the end of {group}")

    # --- the end ------------------------------------------------------------------------------

    def delete(self) -> None:
        """Power off in order, and remove what is left."""
        if self._process.poll() is None:
            os.kill(self.leader, signal.SIGRTMIN + 4)  # systemd(1): poweroff.target
            try:
                self._process.wait(POWER_OFF_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._kill()
        super().delete()
        self._clean()

    def _kill(self) -> None:
        if self._process.poll() is None:
            if self.leader:
                # With PID 1, all others of its namespace end.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.leader, signal.SIGKILL)
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._clean()

    def _clean(self) -> None:
        # The control groups stay behind, empty, in whatever tree this machine has.
        for top in ("/sys/fs/cgroup", "/sys/fs/cgroup/unified"):
            tree = Path(top) / self.name
            wait_until(partial(_removed, tree), f"the end of {tree}")
        self._console.close()
        Path(self._console.name).unlink(missing_ok=True)
        if self._top.exists():
            self._top.rmdir()


def _removed(tree: Path) -> bool:
    """Removes a tree of control groups; returns whether it is gone: processes take a while to end."""
    if tree.is_dir():
        try:
            for folder in sorted(tree.rglob("*/"), key=lambda f: -len(f.parts)):
                folder.rmdir()
            tree.rmdir()
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.ENOENT}:
                raise
            return False
    return True


def _dissolved(group: Path) -> bool:
    """Moves the processes of a memory control group to the root, and returns whether it is gone."""
    for pid in (group / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError):  # it has ended meanwhile
            (MEMORY_GROUPS / "cgroup.procs").write_text(f"{pid}\n")
    return _removed(group)


class BootedHosts(ThreeHosts):
    """As :class:`ThreeHosts`, but gateway and endpoint are booted; the target is a plain namespace."""

    gateway: Machine
    endpoint: Machine

    def __init__(self, gateway_suite: str, endpoint_suite: str) -> None:
        self._suites = {"gw": gateway_suite, "ep": endpoint_suite}
        super().__init__()

    def _make(self, role: str) -> Host:
        if role not in self._suites:
            return super()._make(role)
        machine = Machine(role, self._suites[role])
        self._made.append(machine)
        return machine
