"""FastSctpTransport against itself and against aiortc's own, over a simulated path."""

import asyncio
import hashlib
import random
from typing import Any

import pytest
from aiortc import RTCDataChannel, RTCSctpTransport

from support.sctp_network import Path, dtls_pair, run_virtual, virtual_aiortc
from support.sctp_transfer import channel, fast, opened, started

KINDS: dict[str, Any] = {"fast": fast, "aiortc": RTCSctpTransport}


@pytest.mark.parametrize("left", KINDS)
@pytest.mark.parametrize("right", KINDS)
@pytest.mark.parametrize("loss", [0.0, 0.03])
def test_hashes_are_equal_both_ways(left: str, right: str, loss: float, monkeypatch: Any) -> None:
    async def main() -> None:
        client, server = dtls_pair(
            Path(delay=0.01, loss=loss, seed=2), Path(delay=0.01, loss=loss, seed=3)
        )
        a, b = KINDS[left](client), KINDS[right](server)
        got: dict[str, Any] = {"a": hashlib.sha256(), "b": hashlib.sha256()}
        count = {"a": 0, "b": 0}

        def listen(side: str, one: RTCDataChannel) -> None:
            def message(data: bytes) -> None:
                got[side].update(data)
                count[side] += len(data)

            one.on("message", message)

        arrived: list[RTCDataChannel] = []

        def arrive(one: RTCDataChannel) -> None:
            arrived.append(one)
            listen("b", one)

        b.on("datachannel", arrive)
        await started(a, b)
        mine = channel(a)
        listen("a", mine)
        await opened(mine)
        rng = random.Random(4)
        sent = {"a": hashlib.sha256(), "b": hashlib.sha256()}
        total = {"a": 0, "b": 0}
        for _ in range(60):
            for side, one in (("a", mine), ("b", arrived[0])):
                data = rng.randbytes(rng.choice((1, 100, 1_160, 5_000, 40_000)))
                sent[side].update(data)
                total[side] += len(data)
                one.send(data)
            await asyncio.sleep(0.002)
        async with asyncio.timeout(200):
            while count["a"] < total["b"] or count["b"] < total["a"]:
                await asyncio.sleep(0.05)
        assert got["a"].digest() == sent["b"].digest()
        assert got["b"].digest() == sent["a"].digest()
        await asyncio.sleep(1)
        assert mine.bufferedAmount == 0
        await asyncio.gather(a.stop(), b.stop())

    with virtual_aiortc(monkeypatch):
        run_virtual(main)
