"""A program in a terminal: a pseudo-terminal, and a screen that shows what it writes there.

The screen knows what full-screen programs here use: moving the cursor home, carriage return and line
feed, erasing, the alternate screen, and hiding the cursor. Colours are ignored; anything else is an
error, so that no test sees a screen that a real terminal would not show.
"""

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from support.processes import PATIENCE

_TOKEN = re.compile(r"\x1b\[([?]?)([0-9;]*)([A-Za-z])|\x1b(.)|([\r\n])|([^\x1b\r\n]+)", re.DOTALL)


class Screen:
    """What a terminal of this size shows."""

    def __init__(self, width: int, height: int) -> None:
        self.alternate = False
        self.cursor_shown = True
        self._rest = ""
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        """Take another size; what was shown is forgotten."""
        self.width, self.height = width, height
        self._row = self._column = 0
        self._clear()

    def _clear(self) -> None:
        self._cells = [[" "] * self.width for _ in range(self.height)]

    @property
    def lines(self) -> list[str]:
        """The lines, without the spaces at their ends."""
        return ["".join(row).rstrip() for row in self._cells]

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines)

    def feed(self, text: str) -> None:
        """Take what a program writes."""
        text = self._rest + text
        # The end of it may be half a sequence.
        cut = text.rfind("\x1b")
        whole = cut < 0 or re.match(r"\x1b(\[[?]?[0-9;]*[A-Za-z]|[^\[])", text[cut:])
        text, self._rest = (text, "") if whole else (text[:cut], text[cut:])
        for private, numbers, final, escape, control, plain in _TOKEN.findall(text):
            if plain:
                self._write(plain)
            elif control:
                self._control(control)
            elif escape:
                raise AssertionError(f"ESC {escape!r} is not known here")
            else:
                self._sequence(private, numbers, final)

    def _control(self, control: str) -> None:
        if control == "\r":
            self._column = 0
        elif self._row + 1 < self.height:
            self._row += 1
        else:
            self._cells = [*self._cells[1:], [" "] * self.width]

    def _write(self, plain: str) -> None:
        for character in plain:
            if self._column == self.width:  # only now: the last column can be written to
                self._column = 0
                self._control("\n")
            self._cells[self._row][self._column] = character
            self._column += 1

    def _sequence(self, private: str, numbers: str, final: str) -> None:
        match private, numbers, final:
            case "?", "1049", "h" | "l":
                self.alternate = final == "h"
                self._clear()
            case "?", "25", "h" | "l":
                self.cursor_shown = final == "h"
            case "", "", "H":
                self._row = self._column = 0
            case "", "2", "J":
                self._clear()
            case "", _, "m":
                pass
            case _:
                raise AssertionError(f"CSI {private}{numbers}{final} is not known here")


class Terminal:
    """A program that runs in a terminal of its own."""

    def __init__(
        self,
        arguments: Sequence[str | Path],
        *,
        width: int = 80,
        height: int = 24,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.screen = Screen(width, height)
        self.written = ""
        self._master, self._slave = pty.openpty()
        self._poll = select.poll()
        self._poll.register(self._master, select.POLLIN)
        self._set_size()
        self.settings_before = termios.tcgetattr(self._slave)
        self.popen = subprocess.Popen(
            # The terminal is to be the controlling one, so that Ctrl-C can be typed there. (The group
            # must not be a new one: setsid would fork, and the program would not be our child.)
            ["setsid", "--ctty", *map(str, arguments)],
            stdin=self._slave,
            stdout=self._slave,
            stderr=self._slave,
            env={**os.environ, "TERM": "xterm-256color", **(environment or {})},
        )

    def _set_size(self) -> None:
        size = struct.pack("HHHH", self.screen.height, self.screen.width, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def resize(self, width: int, height: int) -> None:
        """Change the size of the window; the kernel sends SIGWINCH."""
        self._read(0)
        self.screen.resize(width, height)
        self._set_size()

    def type(self, keys: str) -> None:
        """Press keys; `\\x03` is Ctrl-C."""
        os.write(self._master, keys.encode())

    def _read(self, seconds: float) -> bool:
        if not self._poll.poll(seconds * 1000):
            return False
        text = os.read(self._master, 65_536).decode("utf-8", "surrogateescape")
        self.written += text
        self.screen.feed(text)
        return True

    def wait(self, condition: Callable[[Screen], Any], what: str, timeout: float = PATIENCE) -> Any:
        """What `condition` gives for the screen once that is true."""
        end = time.monotonic() + timeout
        while True:
            if value := condition(self.screen):
                return value
            left = end - time.monotonic()
            assert left > 0, f"not within {timeout} s: {what}\n{self.screen.text}"
            self._read(min(left, 0.5))

    def shows(self, pattern: str, timeout: float = PATIENCE) -> re.Match[str]:
        """The first match of `pattern` in the text of the screen, once there is one."""
        found: re.Match[str] = self.wait(
            lambda screen: re.search(pattern, screen.text, re.MULTILINE), repr(pattern), timeout
        )
        return found

    def ended(self, timeout: float = PATIENCE) -> int:
        """The program's exit status."""
        end = time.monotonic() + timeout
        while self.popen.poll() is None and time.monotonic() < end:
            self._read(0.05)
        status: int = self.popen.wait(max(end - time.monotonic(), 0.1))
        while self._read(0.05):
            pass
        return status

    def assert_restored(self) -> None:
        """Assert that the terminal is as the program found it."""
        assert termios.tcgetattr(self._slave) == self.settings_before
        assert not self.screen.alternate
        assert self.screen.cursor_shown

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.popen.poll() is None:
            self.popen.send_signal(signal.SIGKILL)
            self.popen.wait()
        os.close(self._master)
        os.close(self._slave)
