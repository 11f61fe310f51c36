"""`python -m socks_tunnel.exporter`: started by the supervisor, never by hand."""

import argparse
import signal
from pathlib import Path

import uvloop

from socks_tunnel.exporter import server
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops import metrics
from socks_tunnel.ops.process import die_before_parent, die_with_parent, leave


def main() -> int:
    """Runs the exporter until the supervisor ends it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="socks-tunnel-exporter")
    parser.add_argument("--ipc-fd", type=int, required=True)
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--metrics-dir", type=Path, required=True)
    parser.add_argument("--hosts", default="", help="names of ours, separated by commas")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto")
    arguments = parser.parse_args()
    die_with_parent()
    # The supervisor decides when it ends: a signal to the whole process or control group must not
    # take the metrics away while the supervisor drains.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    ops_logging.setup(arguments.log_level, arguments.log_format, component="exporter")
    die_before_parent()
    metrics.configure(arguments.metrics_dir, "exporter")
    uvloop.run(
        server.serve(
            arguments.ipc_fd,
            arguments.listen_fd,
            arguments.metrics_dir,
            names=frozenset(filter(None, arguments.hosts.split(","))),
        ),
        debug=False,
    )
    return 0


if __name__ == "__main__":
    status = main()
    ops_logging.shutdown()
    leave(status)  # without a wait for a thread that renders
