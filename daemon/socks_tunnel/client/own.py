"""A private instance for the time of one command: `socks-tunnel exec` if none runs."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from socks_tunnel.client.instances import InstanceError
from socks_tunnel.config import paths
from socks_tunnel.ops.process import KILL_TIMEOUT
from socks_tunnel.supervisor.environment import OWN_ENVIRONMENT, PARENT_VARIABLE

STOP_TIMEOUT: Final = 3.0
"""Seconds that its flows have to end after the command. Then a second signal ends it at once."""

LEAVE_TIMEOUT: Final = 5.0
"""Seconds that it has to end after the second signal. Then it is killed (SIGKILL)."""

LOG_TAIL: Final = 2000
"""Bytes of its log that are shown if it could not be used."""


class OwnInstance:
    """A gateway that starts and ends with a `with` block, and listens on a free loopback port.

    It uses no port of the configuration: neither those of `[socks]` and `[[forwards]]` nor that of
    `[metrics]`. If this process is killed, the kernel kills the gateway, too. Entering the block
    raises :class:`InstanceError` if no process can be started.
    """

    def __init__(self, config: Path) -> None:
        self._config = config
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None

    def __enter__(self) -> Self:
        try:
            self._start()
        except OSError as error:
            if self._log is not None:
                self._log.close()
            if self._directory is not None:
                self._directory.cleanup()
            why = error.strerror or error
            raise InstanceError(f"no instance can be started: {why}") from None
        return self

    def _start(self) -> None:
        self._directory = paths.temporary_directory("socks-tunnel-exec-")
        home = Path(self._directory.name)
        environment = {k: v for k, v in os.environ.items() if k not in OWN_ENVIRONMENT}
        environment["RUNTIME_DIRECTORY"] = environment["STATE_DIRECTORY"] = str(home)
        environment[PARENT_VARIABLE] = str(os.getpid())
        self._log = (home / "log").open("w+b")
        self._process = subprocess.Popen(  # noqa: S603 - our own program
            (
                sys.executable,
                "-P",
                "-m",
                "socks_tunnel",
                "run",
                "--private",
                "--config",
                self._config,
            ),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=environment,
            # Not in the terminal's process group: ^C is for the command.
            start_new_session=True,
        )

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        assert self._log is not None
        assert self._directory is not None
        for number, timeout in ((signal.SIGTERM, STOP_TIMEOUT), (signal.SIGTERM, LEAVE_TIMEOUT)):
            self._process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
                break
        else:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(KILL_TIMEOUT)
        self._log.close()
        self._directory.cleanup()

    def socket(self) -> Path | None:
        """Returns its control socket; None while it has none."""
        assert self._directory is not None
        path = paths.control_socket(Path(self._directory.name))
        return path if path.exists() else None

    def ended(self) -> int | None:
        """Returns its exit status; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def log_tail(self) -> str:
        """Returns the end of its log."""
        assert self._log is not None
        self._log.flush()
        data = Path(self._log.name).read_bytes()
        return data[-LOG_TAIL:].decode(errors="replace").rstrip()
