"""Flows of every kind through one tunnel, while something happens to its link.

A download and an upload without end, an echo in small messages as a shell would have, an echo that says
nothing, and a UDP association. What comes out is compared byte by byte or by hash with what went in.
"""

import contextlib
import hashlib
import itertools
import random
import struct
import threading
import time
from collections.abc import Callable
from typing import Self

from support.hosts import TARGET_ADDRESS
from support.processes import wait_until
from support.rawsocks import Association
from support.targets import SOURCE_BLOCK
from support.tunnels import Tunnel

PACE = 4_000_000
"""Bytes per second of each bulk transfer: below what the machine can do, so that other flows have time."""

PATIENCE = 150.0
"""Seconds that an application waits for the next byte."""


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
    """The flows; each has a thread. `ended_as_wanted` checks them all after they were stopped."""

    def __init__(self, tunnel: Tunnel, *, pace: float = PACE) -> None:
        self.tunnel = tunnel
        self.pace = pace
        self.stop = threading.Event()
        self.downloaded = 0
        self.uploaded = 0
        self.answers: list[float] = []
        """When each small message came back."""
        self.errors: list[str] = []
        self._exit = contextlib.ExitStack()
        self.down = self._exit.enter_context(tunnel.connect("source", timeout=PATIENCE))
        self.up = self._exit.enter_context(tunnel.connect("hash", timeout=PATIENCE))
        self.shell = self._exit.enter_context(tunnel.connect("echo", timeout=PATIENCE))
        self.idle = self._exit.enter_context(tunnel.connect("echo", timeout=PATIENCE))
        with tunnel.site.gateway.inside():
            self.calls = self._exit.enter_context(Association(tunnel.proxy))
        self.ask_by_udp()
        self._threads = [
            threading.Thread(target=self._run, args=(body,), name=body.__name__)
            for body in (self._download, self._upload, self._type)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        wait_until(
            lambda: self.downloaded and self.uploaded and len(self.answers) > 3,
            f"traffic; {self.errors}",
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for sock in (self.down, self.up, self.shell):
            with contextlib.suppress(OSError):
                sock.settimeout(0.01)
        for thread in self._threads:
            thread.join(PATIENCE)
        self._exit.close()

    # --- threads ------------------------------------------------------------------------------

    def _run(self, body: Callable[[], None]) -> None:
        try:
            body()
        except (OSError, AssertionError) as error:
            if not self.stop.is_set():
                self.errors.append(f"{body.__name__}: {error!r}")

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

    def _type(self) -> None:
        number = 0
        while not self.stop.is_set():
            message = struct.pack(">Q", number) * 4
            self.shell.sendall(message)
            got = b""
            while len(got) < len(message):
                piece = self.shell.recv(len(message) - len(got))
                assert piece, "the shell ended"
                got += piece
            assert got == message
            self.answers.append(time.monotonic())
            number += 1
            self.stop.wait(0.02)

    # --- what is looked at ----------------------------------------------------------------------

    def ask_by_udp(self) -> None:
        """A datagram comes back."""
        port = self.tunnel.site.ports["udp_echo"]
        assert self.calls.ask(TARGET_ADDRESS, port, b"call", attempts=20)[2] == b"call"

    def recovered_after(self, moment: float, timeout: float = 90) -> float:
        """Seconds from a moment until a small message came back that was answered after it."""

        def answered() -> float | None:
            assert not self.errors, self.errors
            return next((at for at in self.answers if at > moment), None)

        return wait_until(answered, "an answer", timeout=timeout) - moment

    def stalled_since(self, moment: float) -> float:
        """The longest time in seconds between two answers since a moment."""
        times = [moment, *(at for at in list(self.answers) if at > moment)]
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def goes_on(self) -> None:
        """Bytes of all kinds move from here on."""
        down, up, answers = self.downloaded, self.uploaded, len(self.answers)
        wait_until(
            lambda: (
                self.errors
                or (
                    self.downloaded > down + 500_000
                    and self.uploaded > up + 500_000
                    and len(self.answers) > answers + 5
                )
            ),
            f"bulk and small messages: {self.downloaded - down} {self.uploaded - up} "
            f"{len(self.answers) - answers}",
        )
        assert not self.errors, self.errors

    def ended_as_wanted(self) -> None:
        """Stops everything, and compares what came out with what went in."""
        self.goes_on()
        self.ask_by_udp()
        self.idle.sendall(b"still here")
        assert self.idle.recv(100) == b"still here"
        self.stop.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        assert not self.errors, self.errors
        self.up.shutdown(1)
        assert self.up.recv(1000).decode() == f"{self.uploaded} {self._digest.hexdigest()}\n"
