"""Retires workers beyond `workers.count`: they keep their flows, and end with the last one.

They come from the previous program, whose configuration had more workers. A flow belongs to its
worker and cannot be moved. A retiring worker accepts no clients and gets no new flows.
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

    Does nothing for a worker below `count`.
    """
    if slot.index < count:
        return
    slot.drain()
    _log.info("%s is beyond workers.count: it ends with its last flow", slot.name)
    await slot.drained.wait()
    await slot.stop(STOP_TIMEOUT)
    if slot in workers:
        workers.remove(slot)
    _log.info("%s has no flow left, and has ended", slot.name)
