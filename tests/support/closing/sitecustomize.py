"""Lets a test close all peer connections of a daemon under it, by a signal.

Python imports this at its start if the folder is in PYTHONPATH. Nothing of the program knows of it: what
it sees is that a connection has ended which it did not end.
"""

import asyncio
import gc
import signal
from types import FrameType

_tasks: set["asyncio.Task[None]"] = set()


def _close(number: int, frame: FrameType | None) -> None:
    from aiortc import RTCPeerConnection

    for found in gc.get_objects():
        if isinstance(found, RTCPeerConnection):
            task = asyncio.get_running_loop().create_task(found.close())
            _tasks.add(task)
            task.add_done_callback(_tasks.discard)


signal.signal(signal.SIGRTMIN + 3, _close)
