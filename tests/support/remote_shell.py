"""A real ssh session through a tunnel: Debian's sshd on the target's host, and its ssh with a shell.

The shell runs in a terminal there. What is typed is a command, and what it prints is compared with what
it has to print, line by line.
"""

import contextlib
import os
import select
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from support.hosts import TARGET_ADDRESS, Host
from support.processes import wait_until

PORT: Final = 2222

# A terminal that does not repeat what is typed, and a shell without a prompt: all that comes is output.
_COMMAND: Final = "stty -echo; echo ready; PS1= exec /bin/sh -i"


def end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a process and closes its pipes."""
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()


class SshServer:
    """An sshd on a host, on :data:`PORT`, for one user key; `directory` is its own."""

    def __init__(self, host: Host, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        for name in ("host", "user"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(command, check=True)
        shutil.copy(directory / "user.pub", directory / "authorized_keys")
        (directory / "sshd_config").write_text(
            f"ListenAddress {TARGET_ADDRESS}:{PORT}\nPidFile none\nUsePAM no\nStrictModes no\n"
            f"PermitRootLogin prohibit-password\nHostKey {directory}/host\n"
            f"AuthorizedKeysFile {directory}/authorized_keys\n"
        )
        Path("/run/sshd").mkdir(exist_ok=True)
        program = str(shutil.which("sshd", path="/usr/sbin:/usr/bin"))
        self._log = (directory / "sshd.log").open("w+b")
        self._process = host.start(
            *(program, "-D", "-e", "-f", directory / "sshd_config"),
            stdin=subprocess.DEVNULL,
            stderr=self._log,
        )
        wait_until(self._listens, "sshd listens")

    def _listens(self) -> bool:
        text = (self.directory / "sshd.log").read_text(errors="replace")
        assert self._process.poll() is None, text
        return f"listening on {TARGET_ADDRESS} port {PORT}" in text

    def close(self) -> None:
        """Ends it. Sessions end with their connections."""
        end(self._process)
        self._log.close()


class RemoteShell:
    """An ssh session with a shell, from a gateway's host through its proxy.

    `prefix` is the command that runs others on that host.
    """

    def __init__(
        self,
        server: SshServer,
        prefix: Sequence[str],
        proxy: tuple[str, int],
        *,
        patience: float = 120.0,
    ) -> None:
        self._patience = patience
        self._typed = 0
        host, port = proxy
        self._process = subprocess.Popen(
            [
                *prefix,
                *("ssh", "-tt", "-F", "/dev/null", "-p", str(PORT)),
                *("-i", str(server.directory / "user")),
                *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"),
                *("-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"),
                *("-o", f"ProxyCommand=nc.openbsd -X 5 -x {host}:{port} %h %p"),
                *(f"root@{TARGET_ADDRESS}", _COMMAND),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        assert self._process.stdout is not None
        # Not select(2): beside a thousand flows, the descriptor may be over 1,024.
        self._poll = select.poll()
        self._poll.register(self._process.stdout, select.POLLIN)
        try:
            self._expect(b"ready\r\n")
        except BaseException:
            self.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether the session has ended."""
        return self._process.poll() is not None

    def type(self, *, lines: int = 0) -> None:
        """Types a command, and waits for what it prints: so many lines, and an answer.

        Raises :class:`AssertionError` if it prints anything else, or if the session has ended.
        """
        self._typed += 1
        number = self._typed
        assert self._process.stdin is not None
        output = f"seq {number} {number + lines - 1}; " if lines else ""
        with contextlib.suppress(BrokenPipeError):  # the end is told by what is read
            self._process.stdin.write(f"{output}echo $(({number} + 1000))done\n".encode())
        printed = [*map(str, range(number, number + lines)), f"{number + 1000}done"]
        self._expect("".join(f"{line}\r\n" for line in printed).encode())

    def _expect(self, wanted: bytes) -> None:
        assert self._process.stdout is not None
        shown = b""
        deadline = time.monotonic() + self._patience
        while len(shown) < len(wanted):
            ready = self._poll.poll(max(0.0, 1000 * (deadline - time.monotonic())))
            assert ready, f"the shell shows nothing more than {shown!r}"
            piece = os.read(self._process.stdout.fileno(), len(wanted) - len(shown))
            assert piece, f"the ssh session ended: {shown!r}"
            shown += piece
        assert shown == wanted

    def hang_up(self) -> None:
        """Ends the session from this side; whoever waits for output of it is told."""
        self._process.kill()

    def close(self) -> None:
        """Ends the session, and frees what belongs to it."""
        end(self._process)
