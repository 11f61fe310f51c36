"""Reads a configuration in a process of its own.

The validation library and the models take 11 MiB and 0.2 s, and are needed only at the start and
for a reload. So they run in a process that reads the file, passes the result to the supervisor, and
ends. Meanwhile the supervisor's event loop is not held up, even if there are thousands of peers.
"""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Final

from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.settings import Config
from socks_tunnel.ops.process import KILL_TIMEOUT

READ_TIMEOUT: Final = 60.0
"""Seconds within which the process must end. 5,000 peers take three. A network file system whose
server does not answer uses up the whole time."""


class Reading:
    """A configuration file that is being read; :meth:`result` waits for it."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        # With -P, no module is imported from the working directory.
        command = (sys.executable, "-P", "-m", "socks_tunnel.config", str(self.path))
        self._process = subprocess.Popen(  # noqa: S603 - our own program, and a path as one argument
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        )

    @property
    def pid(self) -> int:
        """The id of the process that reads."""
        return self._process.pid

    def result(self, timeout: float = READ_TIMEOUT) -> Config:
        """Returns what was read within `timeout` seconds.

        Raises :class:`ConfigError` with every mistake, also if the process does not end.
        """
        process = self._process
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise ConfigError([Problem(self.path, None, "", self._kill(timeout))]) from None
        if process.returncode != 0:
            ending = (
                f"was killed by signal {-process.returncode}"
                if process.returncode < 0
                else f"exited with status {process.returncode}"
            )
            message = f"the process that reads it {ending}"
            raise ConfigError([Problem(self.path, None, "", message)])
        found = pickle.loads(output)  # noqa: S301 - from a process of this program and this user
        if isinstance(found, Config):
            return found
        raise ConfigError(found)

    def _kill(self, timeout: float) -> str:
        """Kills the process, which is too slow. Returns the sentence about it."""
        process = self._process
        process.kill()
        if process.stdout is not None:
            process.stdout.close()
        try:
            process.wait(KILL_TIMEOUT)
        except subprocess.TimeoutExpired:
            ending = "and does not end by SIGKILL either"
        else:
            ending = "and was killed"
        return (
            f"the process that reads it (PID {process.pid}) has not ended within {timeout:g} s, "
            f"{ending}; this file or one that it names is on a file system that does not answer"
        )


def read(path: Path) -> Config:
    """Reads and checks the configuration at `path` in another process, and waits for it.

    Raises :class:`ConfigError` with every mistake, and :class:`OSError` if no process can be
    started.
    """
    return Reading(path).result()
