"""`python -m socks_tunnel.supervisor.selfcheck FILE`: whether this program could start now.

The running program asks the installed one before it gives its place up. Everything that a
supervisor and a worker need is imported, and the configuration is read; nothing is bound, written
or dialled. Prints a line of JSON with its version and the versions of the hand-over that it reads.
Exit status 0, or 78 for a configuration that it cannot use, 70 for anything else.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

import socks_tunnel
from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.reading import read
from socks_tunnel.ops.process import leave
from socks_tunnel.peer.select import fast_path_active
from socks_tunnel.protocol.handover import READABLE
from socks_tunnel.supervisor import main as supervisor
from socks_tunnel.supervisor.children import EXPORTER_COMMAND, WORKER_COMMAND
from socks_tunnel.supervisor.handover import answer
from socks_tunnel.supervisor.problems import EXIT_BUG, EXIT_CONFIG

WORKER_TIMEOUT: Final = 30.0
"""Seconds that a child has to import all its parts."""


def main() -> int:
    """Checks, and returns the exit status."""
    assert callable(supervisor.run), "it was imported, with all that it needs"
    try:
        config = read(Path(sys.argv[1]))
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    fast_path_active(config.transport.fast_path)
    for command in (WORKER_COMMAND, EXPORTER_COMMAND):
        # With --help a child ends once it has imported everything.
        child = subprocess.run(  # noqa: S603 - our own programs
            [*command, "--help"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WORKER_TIMEOUT,
            check=False,
        )
        if child.returncode != 0:
            sys.stderr.write(child.stderr.decode(errors="replace"))
            return EXIT_BUG
    sys.stdout.write(answer(socks_tunnel.__version__, sorted(READABLE)) + "\n")
    return 0


if __name__ == "__main__":
    leave(main())
