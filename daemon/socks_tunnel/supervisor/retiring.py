"""Workers beyond `workers.count`: they keep the flows that they have, and end with the last one.

They come from the program before, whose configuration had more workers. A flow belongs to its
worker, so none can be moved; a worker that retires accepts nobody and is given no new flow.
"""

import logging
from collections.abc import Iterable
from typing import Final

from socks_tunnel.supervisor.children import WorkerSlot

_log = logging.getLogger(__name__)

STOP_TIMEOUT: Final = 5.0
"""Seconds that a worker without flows has to end."""


def worker_indices(count: int, handed: Iterable[int]) -> list[int]:
    """Returns the indices of the workers to have: `count`, and those that were handed over."""
    return sorted({*range(count), *handed})


async def retire(workers: list[WorkerSlot], count: int, slot: WorkerSlot) -> None:
    """Ends a worker beyond `count` once it has no flow left, and takes it out of `workers`.

    Does nothing for one of the others.
    """
    if slot.index < count:
        return
    slot.drain()
    _log.info("%s is one too many for workers.count: it ends with its last flow", slot.name)
    await slot.drained.wait()
    await slot.stop(STOP_TIMEOUT)
    if slot in workers:
        workers.remove(slot)
    _log.info("%s has no flow left, and has ended", slot.name)
