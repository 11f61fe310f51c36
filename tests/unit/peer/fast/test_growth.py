"""An association that has carried many messages holds what it held after the first ones."""

import asyncio
import random
from collections import Counter
from functools import reduce
from operator import or_

import pytest

from socks_tunnel.ops.compiled import is_compiled
from socks_tunnel.peer.fast.congestion import CongestionName
from support.growth import grown, held
from support.sctp_network import Path, dtls_pair, run_virtual
from support.sctp_transfer import Sink, channel, fast, opened, started

ROUNDS = 4

REMEMBERED = ("Recovery._retransmitted",)
"""What was sent again in the last episode of losses, until the next one: OUTSTANDING_MAX at most."""


@pytest.mark.skipif(
    is_compiled("socks_tunnel.peer.fast.congestion"),
    reason="looks into all objects of the modules; mypyc's own types cannot be looked into",
)
@pytest.mark.parametrize("congestion", ["cubic", "bbr"])
def test_messages_that_are_delivered_or_lost_leave_nothing(congestion: CongestionName) -> None:
    """Over a path that loses, reorders and repeats; datagrams are given up there."""

    async def main() -> list[Counter[str]]:
        there = Path(delay=0.01, rate=4e6, queue=200, loss=0.03, jitter=0.003, duplicate=0.01)
        back = Path(delay=0.01, rate=4e6, queue=200, loss=0.03, jitter=0.003, seed=2)
        dtls = dtls_pair(there, back, probing=True)
        a, b = fast(dtls[0], congestion=congestion), fast(dtls[1], congestion=congestion)
        sinks = Sink(a), Sink(b)
        await started(a, b)
        lane, other = channel(a), channel(a, "lane-1")
        datagrams = channel(a, "datagrams", ordered=False, maxRetransmits=0)
        await opened(lane, other, datagrams)
        dice = random.Random(7)
        sizes = []
        for _ in range(ROUNDS):
            for _ in range(80):
                for one in (lane, other):
                    a.send_many(one, [bytes(dice.randrange(1, 5_000)) for _ in range(3)])
                a.send_many(datagrams, [bytes(dice.randrange(1, 1_200)) for _ in range(4)])
                await asyncio.sleep(0.01)
            await asyncio.sleep(30)
            assert a.queued_bytes == 0
            sizes.append(held(a, b))
        assert not sinks[0].failed + sinks[1].failed
        await a.stop()
        await b.stop()
        return sizes

    *before, last = run_virtual(main)
    assert last["Recovery"] == 2
    assert not grown(reduce(or_, before), last, REMEMBERED)
