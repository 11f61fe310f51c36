"""Which workers there are after a hand-over, and which of them retire."""

import asyncio
from typing import cast

from socks_tunnel.supervisor.children import WorkerSlot
from socks_tunnel.supervisor.retiring import retire, worker_indices


def test_all_that_were_handed_over_go_on_beside_those_that_are_wanted() -> None:
    assert worker_indices(2, []) == [0, 1]
    assert worker_indices(3, [0, 1]) == [0, 1, 2]
    assert worker_indices(1, [2, 0]) == [0, 2]


class FakeSlot:
    """What a worker's slot is told."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.name = f"worker {index}"
        self.drained = asyncio.Event()
        self.calls: list[str] = []

    def drain(self) -> None:
        self.calls.append("drain")

    async def stop(self, timeout: float) -> None:
        assert timeout > 0
        self.calls.append("stop")


async def test_a_worker_beyond_the_count_ends_with_its_last_flow() -> None:
    fakes = [FakeSlot(0), FakeSlot(1), FakeSlot(2)]
    slots = cast("list[WorkerSlot]", fakes)
    await retire(slots, 2, slots[0])
    assert fakes[0].calls == []
    retiring = asyncio.create_task(retire(slots, 2, slots[2]))
    await asyncio.sleep(0)
    assert fakes[2].calls == ["drain"]
    assert len(slots) == 3
    fakes[2].drained.set()
    await retiring
    assert [slot.index for slot in slots] == [0, 1]
