"""Datagrams and keystrokes beside a transfer on links of a few Mbit/s, in virtual time.

On such a link, the queue of a usual modem takes seconds to empty if a transfer fills it, and a
datagram that waits for its turn in our own queue is late or given up.
"""

import asyncio

import pytest

from support.sctp_network import Path, dtls_pair, run_virtual
from support.sctp_transfer import Sink, channel, fast, opened, started

MBIT = 1e6 / 8
CALLS = 300
INTERVAL = 0.02


async def beside_a_download(rate: float) -> tuple[dict[str, list[float]], float]:
    """Returns how long messages took, by channel, and which share of the rate the transfer got."""
    # A queue of 60 full packets, as in a modem: at 1 Mbit/s it takes 0.72 s to empty.
    there, back = Path(delay=0.01, rate=rate, queue=60), Path(delay=0.01, rate=rate, queue=60)
    dtls = dtls_pair(there, back, probing=True)
    a, b = fast(dtls[0]), fast(dtls[1])
    left, right = Sink(a), Sink(b)
    await started(a, b)
    lane, keys = channel(a), channel(a, "lane-1")
    voice = channel(a, "datagram", ordered=False, maxRetransmits=0)
    await opened(lane, keys, voice)
    left.filling = lane
    left.fill()
    await asyncio.sleep(8)
    loop = asyncio.get_running_loop()
    took: dict[str, list[float]] = {"datagram": [], "lane-1": []}
    bulk = 0

    def arrived(batch: list[tuple[object, bytes]]) -> None:
        nonlocal bulk
        for one, message in batch:
            label = one.label  # type: ignore[attr-defined]
            if label in took:
                took[label].append(loop.time() - float(message[:20]))
            else:
                bulk += len(message)

    right.sctp_messages = arrived  # type: ignore[method-assign,assignment]
    begun = loop.time()
    for number in range(CALLS):
        stamp = f"{loop.time():<20.9f}".encode()
        a.send_many(voice, [stamp + bytes(140)])
        if number % 5 == 0:
            a.send_many(keys, [stamp + bytes(44)])
        await asyncio.sleep(INTERVAL)
    share = bulk / (loop.time() - begun) / rate
    await asyncio.sleep(3)
    await a.stop()
    await b.stop()
    return took, share


@pytest.mark.parametrize("mbit", [1, 2, 4])
def test_neither_datagrams_nor_keystrokes_starve_beside_a_download(mbit: int) -> None:
    """Nearly all datagrams arrive (RFC 8085 section 3.1), and a key is echoed while one still looks."""
    took, share = run_virtual(lambda: beside_a_download(mbit * MBIT))
    assert len(took["datagram"]) >= 0.95 * CALLS
    assert len(took["lane-1"]) == CALLS // 5
    assert max(took["datagram"]) < 0.3
    assert max(took["lane-1"]) < 0.3
    assert share > 0.7, "and the transfer gets what is left"
