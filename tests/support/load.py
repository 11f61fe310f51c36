"""Flows of every kind through one tunnel, while something happens to its link.

A download and an upload without end, an echo in small messages, a real ssh session with a shell, an echo
that says nothing, and a call of datagrams. What comes out is compared byte by byte or by hash with what
went in.
"""

import contextlib
import hashlib
import itertools
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final, Literal, Self

from support.hosts import TARGET_ADDRESS
from support.processes import wait_until
from support.rawsocks import Association
from support.remote_shell import RemoteShell
from support.targets import SOURCE_BLOCK
from support.tunnels import Tunnel

PACE = 4_000_000
"""Bytes per second of each bulk transfer: below what the machine can do, so that other flows have time."""

PATIENCE = 150.0
"""Seconds that an application waits for the next byte."""

CALL_INTERVAL: Final = 0.04
"""Seconds between two datagrams of the call."""

OUTPUT_LINES: Final = 60
"""Lines that each tenth command in the shell prints."""

Flow = Literal["download", "upload", "echo", "shell", "idle", "call"]


class Pace:
    """Holds a transfer back to so many bytes per second."""

    def __init__(self, rate: float, stop: threading.Event) -> None:
        self._rate = rate
        self._stop = stop
        self._due = time.monotonic()

    def passed(self, count: int) -> None:
        """Waits until `count` more bytes are due."""
        self._due = max(self._due + count / self._rate, time.monotonic() - 0.1)
        self._stop.wait(max(0.0, self._due - time.monotonic()))


class Load:
    """The flows; each but the idle one has a thread. `ended_as_wanted` checks them all.

    Without `ssh` there is no shell among them.
    """

    def __init__(self, tunnel: Tunnel, *, pace: float = PACE, ssh: bool = False) -> None:
        self.tunnel = tunnel
        self.pace = pace
        self.stop = threading.Event()
        self.downloaded = 0
        self.uploaded = 0
        self.typed = 0
        """Commands in the shell that were answered."""
        self.heard = 0
        """Datagrams of the call that came back."""
        self.answers: list[float] = []
        """When each small message came back."""
        self.ends: dict[Flow, str] = {}
        """Flows that have ended, and how: a mistake unless the test wants it."""
        self._exit = contextlib.ExitStack()
        try:
            self._open(ssh=ssh)
        except BaseException:
            self._exit.close()
            raise

    def _open(self, *, ssh: bool) -> None:
        tunnel = self.tunnel
        self.sockets: dict[Flow, socket.socket] = {}
        """The TCP connections of the test's own, by what they do."""
        self.down = self._connect("download", "source")
        self.up = self._connect("upload", "hash")
        self.echo = self._connect("echo", "echo")
        self.idle = self._connect("idle", "echo")
        with tunnel.site.gateway.inside():
            self.calls = self._exit.enter_context(Association(tunnel.proxy))
        self.calls.sock.settimeout(CALL_INTERVAL)
        bodies: dict[Flow, Callable[[], None]] = {
            "download": self._download,
            "upload": self._upload,
            "echo": self._send_small,
            "call": self._call,
        }
        if ssh:
            self.shell = RemoteShell(
                tunnel.site.ssh_server, tunnel.site.gateway.command(), tunnel.proxy
            )
            self._exit.callback(self.shell.close)
            bodies["shell"] = self._type
        self._threads = {
            flow: threading.Thread(target=self._run, args=(flow, body), name=flow)
            for flow, body in bodies.items()
        }

    def _connect(self, flow: Flow, server: str) -> socket.socket:
        sock = self._exit.enter_context(self.tunnel.connect(server, timeout=PATIENCE))
        self.sockets[flow] = sock
        return sock

    def __enter__(self) -> Self:
        for thread in self._threads.values():
            thread.start()
        try:
            self.goes_on()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for flow in self._threads:
            if (sock := self.sockets.get(flow)) is not None:
                with contextlib.suppress(OSError):
                    sock.settimeout(0.01)
        if "shell" in self._threads:
            self.shell.hang_up()
        for thread in self._threads.values():
            thread.join(PATIENCE)
        self._exit.close()

    # --- threads ------------------------------------------------------------------------------

    def _run(self, flow: Flow, body: Callable[[], None]) -> None:
        try:
            body()
        except (OSError, AssertionError) as error:
            if not self.stop.is_set():
                self.ends[flow] = repr(error)

    def _download(self) -> None:
        pace = Pace(self.pace, self.stop)
        doubled = SOURCE_BLOCK * 2
        while not self.stop.is_set():
            data = self.down.recv(65_536)
            assert data, "the download ended"
            at = self.downloaded % len(SOURCE_BLOCK)
            assert data == doubled[at : at + len(data)], f"other bytes at {self.downloaded}"
            self.downloaded += len(data)
            pace.passed(len(data))

    def _upload(self) -> None:
        pace = Pace(self.pace, self.stop)
        self._digest = hashlib.sha256()
        words = random.Random(7)
        while not self.stop.is_set():
            data = words.randbytes(16_384)
            self.up.sendall(data)
            self._digest.update(data)
            self.uploaded += len(data)
            pace.passed(len(data))

    def _send_small(self) -> None:
        number = 0
        while not self.stop.is_set():
            message = struct.pack(">Q", number) * 4
            self.echo.sendall(message)
            got = b""
            while len(got) < len(message):
                piece = self.echo.recv(len(message) - len(got))
                assert piece, "the echo ended"
                got += piece
            assert got == message
            self.answers.append(time.monotonic())
            number += 1
            self.stop.wait(0.02)

    def _type(self) -> None:
        while not self.stop.is_set():
            self.shell.type(lines=0 if self.typed % 10 else OUTPUT_LINES)
            self.typed += 1
            self.stop.wait(0.05)

    def _call(self) -> None:
        """Sends a datagram each :data:`CALL_INTERVAL`, and takes what comes back meanwhile."""
        port = self.tunnel.site.ports["udp_echo"]
        sent = 0
        while not self.stop.is_set():
            self.calls.send(TARGET_ADDRESS, port, struct.pack(">Q", sent).ljust(160))
            sent += 1
            with contextlib.suppress(TimeoutError):
                data = self.calls.receive()[2]
                assert struct.unpack(">Q", data[:8])[0] < sent
                assert data[8:] == b" " * 152
                self.heard += 1
                self.stop.wait(CALL_INTERVAL)

    # --- what is looked at ----------------------------------------------------------------------

    def recovered_after(self, moment: float, timeout: float = 90) -> float:
        """Returns the seconds from a moment until a small message came back that came after it."""

        def answered() -> float | None:
            assert not self.ends, self.ends
            return next((at for at in self.answers if at > moment), None)

        return wait_until(answered, "an answer", timeout=timeout) - moment

    def stalled_since(self, moment: float) -> float:
        """Returns the longest time in seconds between two answers since a moment."""
        times = [moment, *(at for at in list(self.answers) if at > moment)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def goes_on(self, *without: Flow) -> None:
        """Waits until bytes of all flows but the idle one, and those of `without`, move."""
        before = self._moved()
        enough: dict[Flow, int] = {
            "download": min(500_000, int(self.pace / 4)),
            "upload": min(500_000, int(self.pace / 4)),
            "echo": 5,
            "shell": 1,
            "call": 5,
        }

        def move() -> bool:
            unwanted = self.ends.keys() - set(without)
            assert not unwanted, self.ends
            now = self._moved()
            return all(
                now[flow] - before[flow] >= enough[flow]
                for flow in self._threads
                if flow not in without
            )

        wait_until(move, f"all flows: {before} {self._moved()}", timeout=120)

    def _moved(self) -> dict[Flow, int]:
        return {
            "download": self.downloaded,
            "upload": self.uploaded,
            "echo": len(self.answers),
            "shell": self.typed,
            "call": self.heard,
        }

    def ended_as_wanted(self, *without: Flow) -> None:
        """Stops everything, and compares what came out with what went in.

        Flows of `without` have to have ended by themselves.
        """
        self.goes_on(*without)
        if "idle" not in without:
            self.idle.sendall(b"still here")
            assert self.idle.recv(100) == b"still here"
        self.stop.set()
        for thread in self._threads.values():
            thread.join(PATIENCE)
        assert self.ends.keys() == set(without) - {"idle"}, self.ends
        if "upload" not in without:
            self.up.shutdown(socket.SHUT_WR)
            total = f"{self.uploaded} {self._digest.hexdigest()}\n"
            assert self.up.recv(1000).decode() == total


def ended(sock: socket.socket, timeout: float) -> bool:
    """Returns whether a silent connection ends within so many seconds, in order or by a reset."""
    if not select.select([sock], [], [], timeout)[0]:
        return False
    try:
        return sock.recv(1) == b""
    except ConnectionResetError:
        return True
