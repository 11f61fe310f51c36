"""`python -m socks_tunnel.config FILE`: reads a configuration for :mod:`.reading`.

What it writes is the pickled result: a :class:`~socks_tunnel.config.settings.Config`, or the list
of the problems that were found.
"""

import pickle
import signal
import sys
from pathlib import Path

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.loader import load


def main() -> None:
    """Reads the file that is named on the command line."""
    # The parent may have ended meanwhile, or Ctrl-C may have ended both. That needs no traceback.
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    try:
        result: object = load(Path(sys.argv[1]))
    except ConfigError as error:
        result = error.problems
    sys.stdout.buffer.write(pickle.dumps(result, pickle.HIGHEST_PROTOCOL))
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
