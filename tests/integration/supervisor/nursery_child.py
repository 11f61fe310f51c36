"""A module that test_launching.py has run in children: it does what it is told on its command line."""

import json
import os
import sys
from pathlib import Path

from socks_tunnel.ops.process import die_with_parent


def main() -> None:
    """Runs one behaviour."""
    match sys.argv[1:]:
        case ["show", fd, *numbers]:
            die_with_parent()
            shown = {
                "argv": sys.argv[1:],
                "original": sys.orig_argv[1:],
                "command": Path("/proc/self/cmdline")
                .read_bytes()
                .rstrip(b"\0")
                .decode()
                .split("\0"),
                "parent": os.getppid(),
                "leader": os.getsid(0) == os.getpid(),
                "greeting": os.environ.get("GREETING"),
                "notify": os.environ.get("NOTIFY_SOCKET"),
                "preloaded": "wave" in sys.modules,
                "texts": [os.read(int(number), 100).decode() for number in numbers],
                "open": len(list(Path("/proc/self/fd").iterdir())) - 1,
            }
            os.write(int(fd), json.dumps(shown).encode())
        case ["exit", status]:
            sys.exit(int(status))
        case ["stay", fd]:
            die_with_parent()
            os.read(int(fd), 1)  # until end-of-file, as a child of the supervisor does


if __name__ == "__main__":
    main()
