"""The program is replaced while flows of every kind go on: gateway, endpoint, and both at once.

The program that is "installed" is what PYTHONPATH leads to, as a link: a test puts another version there.
Process ids stay, so the test's handles of the daemons stay true.
"""

import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

import socks_tunnel
import socks_tunnel_workers
from support.hosts import TARGET_ADDRESS
from support.load import Load
from support.processes import Daemon, wait_until
from support.tunnels import Site, Tunnel

IDLE = 100
"""Flows that say nothing meanwhile."""

PATIENCE = 120.0
"""Seconds for a replacement: on a loaded machine, a program takes many to be imported."""

pytestmark = pytest.mark.timeout(600)  # some replacements, each with the patience of one

PACKAGES = (Path(socks_tunnel.__file__).parent, Path(socks_tunnel_workers.__file__).parent)


class Installed:
    """What is installed, as packages that others may be put in the place of."""

    def __init__(self, directory: Path) -> None:
        self.link = directory / "installed"
        self._names = itertools.count()
        self._directory = directory
        self.put()

    def put(self, changes: dict[str, tuple[str, str]] | None = None) -> None:
        """Installs another version: for each file, a text that is another one in it."""
        version = self._directory / f"version-{next(self._names)}"
        for package in PACKAGES:
            shutil.copytree(package, version / package.name)
        for name, (before, after) in (changes or {}).items():
            text = (version / name).read_text()
            assert before in text
            (version / name).write_text(text.replace(before, after))
        fresh = self.link.with_suffix(".new")
        fresh.symlink_to(version)
        fresh.replace(self.link)


def version(number: str) -> dict[str, tuple[str, str]]:
    """The changes that make it another version."""
    return {"socks_tunnel/__init__.py": (socks_tunnel.__version__, number)}


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    installed = Installed(tmp_path_factory.mktemp("upgrade"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(installed.link))
        yield installed


@pytest.fixture(scope="module")
def scene(make_site: Callable[[], Site], installed: Installed) -> Iterator[Tunnel]:
    with (
        contextlib.closing(make_site()) as site,
        site.tunnel(foreground=True).running() as tunnel,
    ):
        yield tunnel


@pytest.fixture
def alive(scene: Tunnel) -> Tunnel:
    scene.wait_linked(60)
    return scene


def daemons(tunnel: Tunnel, who: str) -> list[Daemon]:
    found = [getattr(tunnel, role) for role in who.split("+")]
    return [daemon for daemon in found if isinstance(daemon, Daemon)]


def pids(daemon: Daemon) -> tuple[int, list[int]]:
    status = daemon.control("status")
    return status["pid"], [worker["pid"] for worker in status["workers"]]


def replaced(daemon: Daemon, upgrades: int) -> float | None:
    """After how many seconds flows went on, once they did."""
    with contextlib.suppress(OSError, AssertionError, KeyError):  # the old program is going
        status = daemon.control("status")
        if status["state"] == "ready" and status["upgrades"] == upgrades:
            found: float | None = status["upgrade"]["resumed_after"]
            return found
    return None


def upgrade(*those: Daemon) -> None:
    """Replaces the programs, as an operator does on each host, and waits until flows go on."""
    before = [daemon.control("status")["upgrades"] for daemon in those]
    for daemon in those:
        daemon.signal(signal.SIGUSR2)
    for daemon, upgrades in zip(those, before, strict=True):
        took = wait_until(
            partial(replaced, daemon, upgrades + 1),
            f"the next program of {daemon.name}:\n{daemon.tail()}",
            timeout=PATIENCE,
        )
        print(f"{daemon.name}: flows went on after {took:.2f} s")


@pytest.mark.parametrize("who", ["gateway", "endpoint", "gateway+endpoint"])
def test_flows_of_every_kind_go_on(alive: Tunnel, installed: Installed, who: str) -> None:
    installed.put(version(f"9.{len(who)}"))
    those = daemons(alive, who)
    before = [pids(daemon) for daemon in those]
    seen = len(those[0].notified())
    down = alive.metric("bytes_total", "gateway", direction="down", kind="tcp")
    with contextlib.ExitStack() as held, Load(alive, ssh=True) as load:
        idle = [held.enter_context(alive.connect("echo", timeout=PATIENCE)) for _ in range(IDLE)]
        began = time.monotonic()
        upgrade(*those)
        load.recovered_after(time.monotonic(), timeout=PATIENCE)
        print(f"{who}: no answer to a keystroke for {load.stalled_since(began):.2f} s")
        for number, sock in enumerate(idle):
            sock.sendall(b"%d" % number)
        for number, sock in enumerate(idle):
            assert sock.recv(100) == b"%d" % number
        load.ended_as_wanted()
    assert [pids(daemon) for daemon in those] == before, "all process ids stay"
    assert {daemon.control("status")["version"] for daemon in those} == {f"9.{len(who)}"}
    wait_until(
        lambda: alive.metric("bytes_total", "gateway", direction="down", kind="tcp") > down,
        "the bytes of before and after in the metrics",
    )

    def told_of_both() -> bool:
        told = those[0].notified()[seen:]
        return "RELOADING=1" in told and "READY=1" in told[told.index("RELOADING=1") :]

    wait_until(told_of_both, "RELOADING=1 and READY=1")
    for daemon in those:
        daemon.assert_clean()


def test_the_command_says_how_it_went(alive: Tunnel, installed: Installed) -> None:
    installed.put(version("9.100"))
    (daemon,) = daemons(alive, "gateway")
    with alive.connect("echo") as sock:
        done = command(daemon)
        assert done.returncode == 0, done.stderr
        assert "version 9.100 has taken the place of" in done.stdout
        assert "flows went on after" in done.stdout
        sock.sendall(b"on")
        assert sock.recv(10) == b"on"


def test_a_terminal_shows_how_far_it_is(alive: Tunnel, installed: Installed) -> None:
    installed.put(version("9.101"))
    (daemon,) = daemons(alive, "gateway")
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        try:
            done = command(daemon, stderr=theirs)
        finally:
            os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: nobody has the other end any more
            while piece := terminal.read(65_536):
                shown += piece
    assert done.returncode == 0, shown
    lines = shown.decode().split("\r\x1b[K")
    assert lines[1] == "the installed program is asked whether it can take over"
    assert any(line.startswith("version 9.101 takes the place of ") for line in lines)
    assert lines[-1] == "", "the line is taken away"
    assert "version 9.101 has taken the place of" in done.stdout


def command(daemon: Daemon, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "socks_tunnel",
            "upgrade",
            "--socket",
            str(daemon.runtime_directory / "control.sock"),
        ],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def test_a_program_that_does_not_start_is_refused_and_nothing_is_lost(
    alive: Tunnel, installed: Installed
) -> None:
    now = alive.gateway.control("status")
    broken = {"socks_tunnel/supervisor/router.py": ("import logging", "import no_such_library")}
    installed.put(broken)
    try:
        (daemon,) = daemons(alive, "gateway")
        seen = len(daemon.log_text())
        with alive.connect("echo") as sock:
            done = command(daemon)
            assert done.returncode == 1
            assert "No module named 'no_such_library'" in done.stderr
            assert f"version {now['version']} keeps running" in done.stderr
            sock.sendall(b"on")
            assert sock.recv(10) == b"on"
        after = daemon.control("status")
        assert (after["pid"], after["upgrades"]) == (now["pid"], now["upgrades"])
        assert "flows wait for the next link" not in daemon.log_text()[seen:]
    finally:
        installed.put()


def test_a_reload_adds_a_forward_and_keeps_the_flows(alive: Tunnel) -> None:
    """What needed a restart before: the program replaces itself for another listener."""
    (daemon,) = daemons(alive, "gateway")
    upgrades = daemon.control("status")["upgrades"]
    target = f"{TARGET_ADDRESS}:{alive.site.ports['echo']}"
    added = [{"listen": "tcp://127.0.0.1:11081", "target": target}]
    with alive.connect("echo", timeout=PATIENCE) as held:
        alive.write("gateway", {"forwards": added})
        daemon.signal(signal.SIGHUP)
        wait_until(partial(replaced, daemon, upgrades + 1), "the next program", timeout=PATIENCE)
        with alive.site.gateway.inside():
            forwarded = socket.create_connection(("127.0.0.1", 11081), PATIENCE)
        for sock in (held, forwarded):
            sock.sendall(b"on")
            assert sock.recv(10) == b"on"
        forwarded.close()
    # A port that somebody else has is refused before anything ends.
    with alive.site.gateway.inside():
        other = socket.create_server(("127.0.0.1", 11082))
    with other:
        busy = {"forwards": [{"listen": "tcp://127.0.0.1:11082", "target": target}]}
        alive.write("gateway", busy)
        seen = len(daemon.log_text())
        daemon.signal(signal.SIGHUP)
        daemon.wait_log(
            "the program is not replaced for changes to.*forwards", after=seen, timeout=PATIENCE
        )
    assert daemon.control("status")["upgrades"] == upgrades + 1
    alive.write("gateway", {"forwards": added})  # what it runs with


def test_a_reload_changes_how_many_workers_there_are(alive: Tunnel) -> None:
    """Flows stay with their workers; one that is beyond the count ends with its last flow."""
    gateway, endpoint = daemons(alive, "gateway+endpoint")
    before = gateway.workers()
    with contextlib.ExitStack() as held, Load(alive) as load:

        def connect(count: int) -> list[socket.socket]:
            return [
                held.enter_context(alive.connect("echo", timeout=PATIENCE)) for _ in range(count)
            ]

        idle = connect(24)
        wait_until(lambda: workers_of_flows(gateway) == {0, 1}, "flows on both workers")
        wait_until(lambda: workers_of_flows(endpoint) == {0, 1}, "flows on both of the endpoint")
        reload_workers(alive, gateway, "gateway", 3)
        wait_until(
            lambda: set(before) < set(gateway.workers()), "one worker beside those of before"
        )
        idle += connect(60)
        wait_until(lambda: workers_of_flows(gateway) == {0, 1, 2}, "flows on all workers")
        reload_workers(alive, gateway, "gateway", 1)
        reload_workers(alive, endpoint, "endpoint", 1)
        wait_until(lambda: retiring(gateway) == [False, True, True], "two that retire")
        wait_until(lambda: retiring(endpoint) == [False, True], "one that retires")
        wait_until(lambda: workers_of_flows(gateway) == {0, 1, 2}, "flows on all workers")
        for number, sock in enumerate(idle):
            sock.sendall(b"%d" % number)
        for number, sock in enumerate(idle):
            assert sock.recv(100) == b"%d" % number
        load.ended_as_wanted()
    for daemon in (gateway, endpoint):
        wait_until(
            lambda: retiring(daemon) == [False],  # noqa: B023
            "the end of workers without flows",
            timeout=PATIENCE,
        )
        daemon.assert_clean()
    with alive.connect("echo") as sock:
        sock.sendall(b"on")
        assert sock.recv(10) == b"on"


def workers_of_flows(daemon: Daemon) -> set[int]:
    return {row["worker"] for row in daemon.control("connections")}


def retiring(daemon: Daemon) -> list[bool]:
    return [row["retiring"] for row in daemon.control("status")["workers"]]


def reload_workers(tunnel: Tunnel, daemon: Daemon, role: str, count: int) -> None:
    upgrades = daemon.control("status")["upgrades"]
    tunnel.write(role, {"workers": {"count": count}})
    daemon.signal(signal.SIGHUP)
    wait_until(partial(replaced, daemon, upgrades + 1), "the next program", timeout=PATIENCE)


def test_a_state_of_another_version_ends_flows_and_not_the_service(
    alive: Tunnel, installed: Installed
) -> None:
    later = {
        "socks_tunnel/protocol/handover.py": (
            "STATE_VERSION: Final = 1",
            "STATE_VERSION: Final = 2",
        )
    }
    installed.put(version("10.0") | later)
    (daemon,) = daemons(alive, "gateway")
    try:
        pid = daemon.pid
        seen = len(daemon.log_text())
        with alive.connect("echo", timeout=PATIENCE) as sock:
            daemon.signal(signal.SIGUSR2)
            daemon.wait_log("it is of version 1, written by", timeout=PATIENCE, after=seen)
            assert ended(sock)
        wait_until(lambda: serves(alive), "the service again", timeout=PATIENCE)
        status = daemon.control("status")
        assert (status["pid"], status["version"]) == (pid, "10.0")
        wait_until(
            lambda: daemon.control("status")["counters"]["flows_tcp"] == 0, "no flow is left over"
        )
    finally:
        installed.put()
        # For the tests after this one: the usual program, which does not know that version either.
        daemon.signal(signal.SIGUSR2)
        wait_until(partial(is_usual, daemon), "the usual program", timeout=PATIENCE)
        wait_until(lambda: serves(alive), "its service", timeout=PATIENCE)


def is_usual(daemon: Daemon) -> bool:
    """Whether the program of this checkout serves."""
    with contextlib.suppress(OSError, AssertionError, KeyError):  # the old program is going
        status = daemon.control("status")
        return (status["state"], status["version"]) == ("ready", socks_tunnel.__version__)
    return False


def serves(tunnel: Tunnel) -> bool:
    """Whether a new flow carries bytes."""
    try:
        with tunnel.connect("echo") as sock:
            sock.sendall(b"new")
            return sock.recv(10) == b"new"
    except OSError:
        return False


def ended(sock: socket.socket) -> bool:
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
