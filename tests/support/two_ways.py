"""A path that is full both ways, with keystrokes and speech beside the bulk, in virtual time.

Two fast associations, without workers and supervisors. 8 bulk flows one way and 4 the other always have
something to send, 100 bytes each 100 ms are echoed, and 172 bytes each 20 ms are spoken. The path is 20 ms
long each way; its queue holds as much as 20, 33 or 333 full packets take, as that of linkemu.c. The keystrokes
have a lane of their own, or share one with a transfer each way.
"""

import asyncio
import math
import random
import re
from collections import defaultdict
from typing import Any, Final

from socks_tunnel.peer.channels import LANE_LABELS
from socks_tunnel.protocol.messages import Data
from support.sctp_network import Path, dtls_pair
from support.sctp_transfer import channel, fast, opened, started

DELAY: Final = 0.02
QUEUES: Final = {1.0: 20, 10.0: 33, 100.0: 333}
"""Full packets in the queue, by Mbit/s."""
MARK: Final = re.compile(rb"(KEYS|ECHO)(\d{8})")
LEAD: Final = 4.0
"""Seconds of the transfers before anything counts."""
MESSAGE: Final = 4_096
KEYS_FLOW: Final = 1
QUEUED: Final = 0.020
"""Seconds of the rate that wait in the link above SCTP (ADR 0032)."""


class Traced(Path):
    """A path that notes when each keystroke was carried: (when, seconds in the queue or nan)."""

    def __init__(self, rate: float, queue: int) -> None:
        super().__init__(delay=DELAY, rate=rate, queue=1 << 30)
        self.limit = queue * 1_500 / rate
        self.seen: dict[bytes, list[tuple[float, float]]] = defaultdict(list)
        self.waits: list[float] = []

    def carry(self, packets: list[bytes], deliver: Any) -> None:
        """Sends packets; drops what finds the queue full."""
        now = asyncio.get_event_loop().time()
        for packet in packets:
            wait = max(self._free - now, 0.0)
            dropped = wait >= self.limit
            self.waits.append(wait)
            if dropped:
                self.sent += 1
                self.dropped += 1
            else:
                super().carry([packet], deliver)
            for kind, number in MARK.findall(packet):
                took = math.nan if dropped else self._free - now
                self.seen[kind + number].append((now, took))


class End:
    """One host: bulk in some lanes, keystrokes or their echo in another."""

    def __init__(self, transport: Any, size: float) -> None:
        self.transport, self.size = transport, size
        self.lanes: list[Any] = []
        self.turn = self.received = 0
        self.came: dict[bytes, float] = {}
        self.voices = 0
        self.echo: Any = None
        transport.attach(self)
        transport.exchange.shared_labels = LANE_LABELS

    def sctp_messages(self, batch: list[tuple[Any, bytes]]) -> None:
        """Counts what came; answers keystrokes."""
        now = asyncio.get_running_loop().time()
        for one, message in batch:
            if one.label == "datagram":
                self.voices += 1
            elif MARK.match(message, 7):
                self.came[message[7:19]] = now
                if message[7:11] == b"KEYS" and self.echo is not None:
                    self.send(self.echo, KEYS_FLOW, b"ECHO" + message[11:])
            else:
                self.received += len(message)

    def sctp_drained(self, _: Any) -> None:
        """Fills the queue again."""
        self.fill()

    def sctp_turn_ended(self) -> None:
        """All was counted when it came."""

    def sctp_failed(self, reason: str) -> None:
        """Ends the run."""
        raise RuntimeError(reason)

    def fill(self) -> None:
        """Queues so much that 20 ms of the rate wait, flow by flow."""
        while self.lanes and self.transport.queued_bytes < self.size:
            self.turn = (self.turn + 1) % len(self.lanes)
            self.send(self.lanes[self.turn], KEYS_FLOW + 1 + self.turn, bytes(MESSAGE))

    def send(self, lane: Any, flow: int, payload: bytes) -> None:
        """Sends stream bytes of a flow, as the transport of a link does."""
        self.transport.send_many(lane, [Data(flow, payload).encode()])


async def both_ways(
    mbit: float, seconds: float, seed: int, *, shared: bool = False
) -> dict[str, Any]:
    """Returns what was measured. `shared`: keystrokes are in the lanes of two of the transfers."""
    draw = random.Random(seed)
    rate = mbit * 125_000
    there, back = Traced(rate, QUEUES[mbit]), Traced(rate, QUEUES[mbit])
    left_dtls, right_dtls = dtls_pair(there, back, probing=True)
    a, b = fast(left_dtls), fast(right_dtls)
    left, right = End(a, rate * QUEUED), End(b, rate * QUEUED)
    await started(a, b)
    # The client uploads four flows, the server sends eight.
    ups = [channel(a, f"lane-{n}") for n in range(4)]
    keys, voice = channel(a, "lane-31"), channel(a, "datagram", ordered=False, maxRetransmits=0)
    await opened(*ups, keys, voice)
    downs = [channel(b, f"lane-{n + 8}") for n in range(8)]
    await opened(*downs)
    right.echo = next(c for c in b._data_channels.values() if c.label == "lane-31")
    if shared:
        keys, right.echo = ups[0], downs[0]
    loop = asyncio.get_running_loop()
    typed: dict[bytes, float] = {}
    await asyncio.sleep(draw.random() * 0.1)
    right.lanes = downs
    right.fill()
    await asyncio.sleep(draw.random() * 0.1)
    left.lanes = ups
    left.fill()
    await asyncio.sleep(LEAD)
    begun, got, heard = loop.time(), (left.received, right.received), right.voices
    marks = (there.dropped, back.dropped)
    spoken = 0
    while loop.time() < begun + seconds:
        if spoken % 5 == 0:
            number = b"%08d" % (spoken // 5)
            typed[number] = loop.time()
            left.send(keys, KEYS_FLOW, (b"KEYS" + number).ljust(93, b"."))
        a.send_many(voice, [bytes(172)])
        spoken += 1
        await asyncio.sleep(0.02)
    elapsed = loop.time() - begun
    down, up = (left.received - got[0]) / elapsed, (right.received - got[1]) / elapsed
    drops = (there.dropped - marks[0], back.dropped - marks[1])
    await asyncio.sleep(5)
    rows = []
    for number, at in typed.items():
        go, come = b"KEYS" + number, b"ECHO" + number
        arrived, done = right.came[go], left.came.get(come, math.inf)
        parts = [done - at]
        for path, name, start, end in ((there, go, at, arrived), (back, come, arrived, done)):
            first, last = path.seen[name][0], path.seen[name][-1]
            good = next((s for s in path.seen[name] if not math.isnan(s[1])), last)
            parts += [
                first[0] - start,
                good[1],
                good[0] - first[0],
                end - good[0] - good[1] - DELAY,
            ]
        rows.append(([p * 1e3 for p in parts], len(path.seen[name]) - 1))
    left.lanes, right.lanes = [], []
    lost = spoken - (right.voices - heard)
    return {
        "rows": rows,
        "down": down * 8e-6,
        "up": up * 8e-6,
        "lost": lost,
        "spoken": spoken,
        "drops": drops,
    }
