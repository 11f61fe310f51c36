"""`python -m socks_tunnel_workers`: one worker. The supervisor starts it."""

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Final

import uvloop

from socks_tunnel.ipc.descriptors import receive_descriptors
from socks_tunnel.ipc.stream import connect
from socks_tunnel.ops import audit_file, metrics
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops.arguments import options
from socks_tunnel.ops.process import come_up_within, die_before_parent, die_with_parent, has_come_up
from socks_tunnel.ops.tasks import LagMeter
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel_workers.handover import OPTION, Inheritance
from socks_tunnel_workers.sockets import adopt
from socks_tunnel_workers.worker import Worker

logger = logging.getLogger(__name__)

TAKE_OVER_SECONDS: Final = 60
"""Seconds that the new program has to start, and again to hear from its supervisor."""


async def _run(
    index: int,
    stream: socket.socket,
    listening: Mapping[int, socket.socket],
    inheritance: Inheritance | None,
) -> int:
    done: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def on_exit(status: int) -> None:
        if not done.done():
            done.set_result(status)

    replace = partial(_replace, index)
    worker = await connect(
        stream,
        lambda: Worker(index, listening, on_exit, replace=replace, inheritance=inheritance),
    )
    lag = LagMeter(worker.metrics.observe_lag)
    # The modules imported so far live as long as the process: the collector can ignore them.
    gc.collect()
    gc.freeze()
    try:
        return await done
    finally:
        lag.cancel()


def _replace(index: int, state: int, stream: int) -> None:
    """Replaces this program by the installed one, which takes over the state and the IPC stream.

    `state` and `stream` are descriptors. Does not return: if the program cannot be replaced, the
    process ends with status 1.
    """
    os.set_inheritable(stream, True)
    known = (f"{OPTION}=", "--listen-fds=", "--ipc-fd=")
    arguments = [each for each in sys.orig_argv[1:] if not each.startswith(known)]
    arguments = [sys.executable, *arguments, f"--ipc-fd={stream}", f"{OPTION}={state}"]
    audit_file.close()
    ops_logging.shutdown()
    come_up_within(TAKE_OVER_SECONDS)
    try:
        os.execv(sys.executable, arguments)  # noqa: S606 - our own interpreter and arguments
    except OSError as error:
        # The log is closed by now. The supervisor starts a new worker when this one has ended.
        sys.stderr.write(
            f"worker {index} cannot be replaced by the installed program: {error}; "
            "it ends, and so do its flows\n"
        )
        sys.stderr.flush()
        os._exit(1)


def _take_over(index: int, stream: socket.socket) -> dict[int, socket.socket] | None:
    """Returns the listening sockets that the new supervisor sends; None if it sends none in time.

    They have the numbers that they had in the supervisor.
    """
    stream.settimeout(TAKE_OVER_SECONDS)
    try:
        descriptors = receive_descriptors(stream)
    except (OSError, RemoteProtocolError) as error:
        logger.error(  # noqa: TRY400 - the sentence says it all
            "worker %d got no listening sockets from the new supervisor: %s; "
            "it ends, and so do its flows",
            index,
            error,
        )
        stream.close()
        return None
    has_come_up()
    return {number: adopt(fd) for number, fd in descriptors.items()}


def main() -> int:
    """Runs one worker until the supervisor ends it, and returns the exit status."""
    given = options(
        sys.argv[1:],
        ("index", "ipc_fd"),
        listen_fds="",
        log_level="info",
        log_format="auto",
        take_over="",
    )
    index = int(given["index"])
    die_with_parent()
    # The supervisor decides when its workers end: a Ctrl-C in its terminal, or a signal to the
    # whole control group, must not cut its drain short.
    for number in (
        signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2
    ):  # fmt: skip
        signal.signal(number, signal.SIG_IGN)
    ops_logging.setup(given["log_level"], given["log_format"], component=f"worker-{index}")
    metrics.configure(Path(os.environ["SOCKS_TUNNEL_METRICS_DIR"]), f"worker-{index}")
    stream = socket.socket(fileno=int(given["ipc_fd"]))
    stream.set_inheritable(False)
    inheritance = None
    if not given["take_over"]:
        die_before_parent()
        listening = {int(fd): adopt(int(fd)) for fd in given["listen_fds"].split(",") if fd}
    else:
        inheritance = Inheritance(int(given["take_over"]))
        taken = _take_over(index, stream)
        if taken is None:
            inheritance.close()
            return 1
        listening = taken
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(index, stream, listening, inheritance))


if __name__ == "__main__":
    result = main()
    audit_file.close()
    ops_logging.shutdown()
    os._exit(result)  # a thread that still looks a name up must not delay the exit
