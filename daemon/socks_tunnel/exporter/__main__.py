"""`python -m socks_tunnel.exporter`: started by the supervisor, never by hand."""

import signal
import sys
from pathlib import Path

import uvloop

from socks_tunnel.exporter import server
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops import metrics
from socks_tunnel.ops.arguments import options
from socks_tunnel.ops.process import die_before_parent, die_with_parent, leave


def main() -> int:
    """Runs the exporter until the supervisor ends it; returns the exit status."""
    given = options(
        sys.argv[1:],
        ("ipc_fd", "listen_fd", "metrics_dir"),
        hosts="",
        log_level="info",
        log_format="auto",
    )
    directory = Path(given["metrics_dir"])
    die_with_parent()
    # The supervisor ends the exporter. A signal to the whole process group or control group must
    # not end the metrics while the supervisor drains.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    ops_logging.setup(given["log_level"], given["log_format"], component="exporter")
    die_before_parent()
    metrics.configure(directory, "exporter")
    uvloop.run(
        server.serve(
            int(given["ipc_fd"]),
            int(given["listen_fd"]),
            directory,
            names=frozenset(filter(None, given["hosts"].split(","))),
        ),
        debug=False,
    )
    return 0


if __name__ == "__main__":
    status = main()
    ops_logging.shutdown()
    leave(status)  # does not wait for a thread that renders metrics
