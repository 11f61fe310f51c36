"""Runs a command for `socks-tunnel exec`: its signals, its exit status."""

import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

EXIT_NOT_EXECUTABLE: Final = 126
EXIT_NOT_FOUND: Final = 127
SIGNAL_BASE: Final = 128
"""The status of a command that a signal has ended is this plus the signal's number, as in a shell.
"""

FORWARDED: Final = frozenset(
    {
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGALRM,
    }
)
"""Signals that are passed on to the command."""


class CommandError(Exception):
    """The command cannot be started. The text is a sentence, and `exit_code` the exit status."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def check(program: str, environment: Mapping[str, str]) -> None:
    """Raises :class:`CommandError` if a command that begins with `program` cannot be started."""
    places = [""] if "/" in program else os.get_exec_path(dict(environment))
    if shutil.which(program, path=os.pathsep.join(places)) is not None:
        return
    there = bool(program) and any(Path(place, program).exists() for place in places)
    raise _cannot_start(program, errno.EACCES if there else errno.ENOENT)


def _cannot_start(program: str, number: int) -> CommandError:
    missing = number in {errno.ENOENT, errno.ENOTDIR}
    return CommandError(
        f"{program}: {os.strerror(number)}", EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE
    )


class Forwarding:
    """Blocks the signals for a command from before it starts until it has ended.

    A signal that comes before the command has started is passed on when it has.
    """

    def __init__(self) -> None:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Runs a command to its end; returns the exit status for it. Raises CommandError."""
        before = self._before
        try:
            child = subprocess.Popen(  # noqa: S603 - to run it is what was asked for
                command,
                env=dict(environment),
                # This process has one thread, and blocked signals would be blocked in the command.
                preexec_fn=lambda: signal.pthread_sigmask(signal.SIG_SETMASK, before),  # noqa: PLW1509
            )
        except OSError as error:
            raise _cannot_start(command[0], error.errno or 0) from None
        while (status := child.poll()) is None:
            info = signal.sigwaitinfo(FORWARDED | {signal.SIGCHLD})
            # A signal of the terminal (^C) goes to the whole foreground group, which includes the
            # command. Only a signal that another process has sent to this one is passed on.
            if info.si_signo != signal.SIGCHLD and info.si_pid:
                child.send_signal(info.si_signo)
        return status if status >= 0 else SIGNAL_BASE - status

    def release(self) -> None:
        """Unblocks the signals."""
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)
