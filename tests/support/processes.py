"""Real processes under test: `socks-tunnel run` and `demo`, with their logs, notifications and memory."""

import contextlib
import itertools
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from support import audit_records

T = TypeVar("T")

_numbers = itertools.count()

PATIENCE = 120.0
"""Seconds for a state to come about: at a load of 40 on two cores, a program takes more than 60 to start."""

SOCKS_TUNNEL = str(Path(sys.executable).with_name("socks-tunnel"))
TARGETS = str(Path(__file__).with_name("targets.py"))

# What no log of a healthy run holds, whatever was done to the run from outside.
_BUGS = re.compile(
    r"Traceback|never awaited|was destroyed but it is pending|never retrieved|Exception in callback"
    r"|ResourceWarning|Fatal Python error"
)


def wait_until(
    probe: Callable[[], T | None], what: str, *, timeout: float = PATIENCE, interval: float = 0.02
) -> T:
    """The first true value that `probe` gives; AssertionError naming `what` after `timeout` seconds.

    For states that announce themselves to nobody, so that only asking again and again shows them.
    """
    end = time.monotonic() + timeout
    while True:
        if value := probe():
            return value
        if time.monotonic() > end:
            raise AssertionError(f"not within {timeout} s: {what}")
        select.select([], [], [], interval)


def toml(table: Mapping[str, Any], path: str = "") -> str:
    """TOML text of nested dicts, lists and scalars."""
    scalars = []
    tables = []
    for key, value in table.items():
        name = f"{path}.{key}" if path else key
        if isinstance(value, Mapping):
            tables.append(f"\n[{name}]\n{toml(value, name)}")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            tables.extend(f"\n[[{name}]]\n{toml(item, name)}" for item in value)
        else:
            # For strings, numbers, booleans and lists of them, JSON's notation is TOML's too.
            scalars.append(f"{key} = {json.dumps(value)}\n")
    return "".join(scalars + tables)


def descendants(pid: int) -> Iterator[int]:
    """Process ids of all living children of `pid`, their children and so on."""
    for child in _children(pid):
        yield child
        yield from descendants(child)


def _children(pid: int) -> list[int]:
    """The living children of a process, those of each of its threads.

    While another child ends, the kernel may leave some out that live (proc_pid_task(5)), so they are
    those of which two looks in a row tell the same.
    """
    before = None
    while (found := _children_once(pid)) != before:
        before = found
    return found


def _children_once(pid: int) -> list[int]:
    found: list[int] = []
    try:
        tasks = sorted(Path(f"/proc/{pid}/task").iterdir())
    except (FileNotFoundError, ProcessLookupError):
        return found
    for task in tasks:
        # A thread that has ended meanwhile is no reason to miss the children of the others.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found += map(int, (task / "children").read_text().split())
    return found


def command_line(pid: int) -> str:
    """The arguments of a process, joined by spaces; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def resident(pid: int) -> int:
    """Bytes of memory of a process, shared pages divided among those that share them (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no PSS")


class Observed:
    """A running program with children, as its log, its processes and its files show it."""

    name: str
    log: Path
    """All that it and its children write to standard error."""
    runtime_directory: Path
    """Its control socket and its metrics are in there."""
    killed = False
    """Set by a test that ends it by force: its exit status is no mistake then."""

    @property
    def pid(self) -> int:
        """The process id of the program itself, in this machine's numbers."""
        raise NotImplementedError

    def log_text(self) -> str:
        """All that it and its children wrote to standard error."""
        return self.log.read_text(errors="replace")

    def wait_log(self, pattern: str, *, timeout: float = PATIENCE, after: int = 0) -> re.Match[str]:
        """The first match of `pattern` in the log behind offset `after`."""
        expression = re.compile(pattern)
        return wait_until(
            lambda: expression.search(self.log_text(), after),
            f"{pattern!r} in the log of {self.name}:\n{self.tail()}",
            timeout=timeout,
        )

    def tail(self, lines: int = 60) -> str:
        """The end of its log."""
        return "\n".join(self.log_text().splitlines()[-lines:])

    def assert_clean(self) -> None:
        """Assert that the log shows no bug."""
        text = self.log_text()
        for line in text.splitlines():
            assert not _BUGS.search(line), f"{self.name}: {line}\n{self.tail(200)}"
        # What runs may be about to write the rest of the last line.
        audit_records.check(text[: text.rfind("\n") + 1])

    def children(self, containing: str = "") -> list[int]:
        """Ids of its descendants whose command line contains a text, lowest first."""
        return sorted(p for p in descendants(self.pid) if containing in command_line(p))

    def workers(self) -> list[int]:
        """Ids of its worker processes."""
        return self.children("socks_tunnel_workers")

    def lasting(self) -> list[int]:
        """Ids of its descendants that do not end by themselves.

        What children are forked from ends when none has been for a while. A process that is ending
        has no command line any more.
        """
        lines = {pid: command_line(pid) for pid in self.children()}
        return [pid for pid, line in lines.items() if line and "socks_tunnel.nursery" not in line]

    def memory(self) -> int:
        """Bytes of memory of it and all its descendants (PSS), once no other is about to end."""
        wait_until(lambda: self.children() == self.lasting(), f"{self.name}'s nursery gone")
        return resident(self.pid) + sum(resident(p) for p in self.lasting())


class Instance(Observed):
    """A running instance: a gateway or an endpoint, in the foreground or as a unit."""

    config: Path
    """Its configuration file, under the name that this machine has for it."""

    def control(self, operation: str, timeout: float = PATIENCE) -> Any:
        """What the control socket answers to an operation such as `status`."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(timeout)
            sock.connect(str(self.runtime_directory / "control.sock"))
            sock.sendall(json.dumps({"op": operation}).encode() + b"\n")
            answer = b""
            while not answer.endswith(b"\n"):
                piece = sock.recv(65_536)
                if not piece:
                    raise AssertionError(f"the control socket closed after {answer!r}")
                answer += piece
        decoded = json.loads(answer)
        assert decoded["ok"], decoded
        return decoded["result"]

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        raise NotImplementedError

    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """Wait until the start is complete; fails at once when the main process ends."""
        raise NotImplementedError

    def wait_stopping(self) -> None:
        """Wait until the service manager knows that it is draining."""
        raise NotImplementedError

    def status_line(self) -> str:
        """What the service manager shows as its status."""
        raise NotImplementedError

    def reload(self) -> None:
        """Have it read its configuration again, and wait until it has."""
        raise NotImplementedError

    def ends_within(self, timeout: float) -> bool:
        """Whether the main process ends by itself in so many seconds."""
        raise NotImplementedError

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status, once it has ended by itself."""
        raise NotImplementedError

    def stop(self, timeout: float = PATIENCE) -> None:
        """End it, if it runs, as systemd does; assert that it went well, and that nothing is left."""
        raise NotImplementedError

    def kill(self) -> None:
        """Make sure that nothing of it stays behind, and free what belongs to the test."""
        raise NotImplementedError


class Process(Observed):
    """A process of the project, with its standard error in a file and an sd_notify socket."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        directory: Path,
        *,
        prefix: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it. `prefix` is a command that runs another one, such as `ip netns exec NAME`."""
        self.name = name
        self.runtime_directory = directory / f"run-{name}"
        self.runtime_directory.mkdir(exist_ok=True)
        self.log = directory / f"{name}.log"
        self.output = directory / f"{name}.out"
        self.notifications: list[str] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        # A name of its own, also for the successor of a process that was killed.
        notify_path = directory / f"{name}-{next(_numbers)}.notify"
        self._notify.bind(str(notify_path))
        # Taken as it comes, as a service manager does: the queue of such a socket is short.
        self._taker = threading.Thread(
            target=self._take_notifications, name=f"notify {name}", daemon=True
        )
        self._taker.start()
        env = {
            **os.environ,
            "NOTIFY_SOCKET": str(notify_path),
            "RUNTIME_DIRECTORY": str(self.runtime_directory),
            "PYTHONWARNINGS": "default",
            **(environment or {}),
        }
        with self.log.open("ab") as log, self.output.open("ab") as output:
            self.popen = subprocess.Popen(
                [*prefix, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                env=env,
                # Its own group: a Ctrl-C at the terminal ends pytest, which ends this in order.
                process_group=0,
            )

    @property
    def pid(self) -> int:
        """The process id of the program itself (`ip netns exec` execs it)."""
        return self.popen.pid

    def _take_notifications(self) -> None:
        while message := self._notify.recv(65_536):
            self.notifications.extend(message.decode().splitlines())

    def notified(self) -> list[str]:
        """Every sd_notify assignment so far, oldest first."""
        return list(self.notifications)

    def wait_notified(self, wanted: str, *, timeout: float = PATIENCE) -> None:
        """Wait for an assignment that begins with `wanted`; fails at once when the process ends."""

        def probe() -> bool:
            if any(line.startswith(wanted) for line in self.notified()):
                return True
            status = self.popen.poll()
            if status is not None:
                raise AssertionError(
                    f"{self.name} ended with status {status} before {wanted}:\n{self.tail()}"
                )
            return False

        wait_until(probe, f"{wanted} from {self.name}:\n{self.tail()}", timeout=timeout)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the main process."""
        self.popen.send_signal(number)

    def ends_within(self, timeout: float) -> bool:
        """Whether the process ends by itself in so many seconds."""
        try:
            self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait(self, timeout: float = PATIENCE) -> int:
        """Its exit status, once it has ended by itself."""
        if not self.ends_within(timeout):
            raise AssertionError(f"{self.name} still runs after {timeout} s:\n{self.tail()}")
        status: int = self.popen.returncode
        return status

    def stop(self, timeout: float = PATIENCE) -> None:
        """End it as systemd would, and assert that it went well: status 0, no child left, no traceback."""
        left = self.children()
        try:
            if self.popen.poll() is None:
                self.signal(signal.SIGTERM)
            status = self.wait(timeout)
        finally:
            self.kill()
        assert status == 0 or self.killed, f"{self.name}: status {status}\n{self.tail()}"
        wait_until(
            lambda: not any(command_line(p) for p in left),
            f"{self.name}'s children gone",
        )
        self.assert_clean()

    def kill(self) -> None:
        """Make sure that nothing of it stays behind, and free what belongs to the test."""
        for pid in [*self.children(), self.pid]:
            if self.popen.returncode is None or pid != self.pid:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        self.popen.wait()
        if self._taker.is_alive():
            # An empty datagram to itself ends the thread.
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
                own.sendto(b"", self._notify.getsockname())
            self._taker.join()
            self._notify.close()


class Daemon(Process, Instance):
    """A `socks-tunnel run` in the foreground, its service manager being the test."""

    def __init__(self, name: str, directory: Path, *, prefix: Sequence[str] = ()) -> None:
        self.config = directory / f"{name}.toml"
        super().__init__(
            name, [SOCKS_TUNNEL, "run", "--config", str(self.config)], directory, prefix=prefix
        )

    def wait_ready(self, timeout: float = PATIENCE) -> None:
        """Wait until it says so."""
        self.wait_notified("READY=1", timeout=timeout)

    def wait_stopping(self) -> None:
        """Wait until it says so."""
        self.wait_notified("STOPPING=1")

    def status_line(self) -> str:
        """The last one that it told."""
        told = [line for line in self.notified() if line.startswith("STATUS=")]
        return told[-1].removeprefix("STATUS=") if told else ""

    def reload(self) -> None:
        """SIGHUP, and wait until it says that it has begun and is ready again."""
        seen = len(self.notified())
        self.signal(signal.SIGHUP)

        def done() -> bool:
            fresh = self.notified()[seen:]
            return "RELOADING=1" in fresh and "READY=1" in fresh[fresh.index("RELOADING=1") :]

        wait_until(done, f"RELOADING=1 and READY=1:\n{self.tail()}")


class Targets:
    """A running targets.py: `ports` by server name."""

    def __init__(self, prefix: Sequence[str] = ()) -> None:
        self.popen = subprocess.Popen(
            [*prefix, sys.executable, TARGETS, "serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.popen.stdout is not None
        line = self.popen.stdout.readline()
        self.ports: dict[str, int] = json.loads(line)

    def stop(self) -> None:
        """End it; it ends with its standard input."""
        self.popen.communicate(timeout=60)
