"""`python -m socks_tunnel_workers`: started by the supervisor, never by hand."""

import argparse
import asyncio
import gc
import os
import signal
import socket
from pathlib import Path

import uvloop

from socks_tunnel.ipc.stream import connect
from socks_tunnel.ops import audit_file, metrics
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops.process import die_before_parent, die_with_parent
from socks_tunnel.ops.tasks import measure_lag, spawn
from socks_tunnel_workers.worker import Worker


async def _run(index: int, ipc_fd: int, listen_fds: list[int]) -> int:
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_exit(status: int) -> None:
        if not done.done():
            done.set_result(status)

    listening = [socket.socket(fileno=fd) for fd in listen_fds]
    worker = await connect(socket.socket(fileno=ipc_fd), lambda: Worker(index, listening, on_exit))
    spawn("measure lag", measure_lag(worker.metrics.observe_lag))
    # What was imported until here lives as long as the process: the collector need not look at it.
    gc.collect()
    gc.freeze()
    return await done


def main() -> int:
    """Runs one worker until the supervisor ends it, and returns the exit status."""
    parser = argparse.ArgumentParser(prog="socks-tunnel-worker")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--ipc-fd", type=int, required=True)
    parser.add_argument("--listen-fds", default="")
    parser.add_argument("--log-level", default="info")
    parser.add_argument("--log-format", default="auto")
    arguments = parser.parse_args()
    die_with_parent()
    # The supervisor decides when its workers end: a Ctrl-C in its terminal, or a signal to the
    # whole control group, must not cut its drain short.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    ops_logging.setup(
        arguments.log_level, arguments.log_format, component=f"worker-{arguments.index}"
    )
    die_before_parent()
    metrics.configure(Path(os.environ["SOCKS_TUNNEL_METRICS_DIR"]), f"worker-{arguments.index}")
    listen_fds = [int(fd) for fd in arguments.listen_fds.split(",") if fd]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(arguments.index, arguments.ipc_fd, listen_fds))


if __name__ == "__main__":
    result = main()
    audit_file.close()
    ops_logging.shutdown()
    os._exit(result)  # a name look-up that still waits in a thread must not hold up the exit
