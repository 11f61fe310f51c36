"""One peer of libdatachannel, for tests/integration/test_fast_interop.py. Needs Python 3.12.

    libdatachannel_peer.py offer|answer

The other side's description comes as a JSON line on standard input, ours goes out as one. Who made the
offer says when it has taken the answer. Both say when the channel is open. Then each takes 300 messages,
says their number and hash, and sends as many of its own.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from aiolibdatachannel import GatheringState, PeerConnection, RTCConfiguration, RTCError

SIZES = [1, 2, 1171, 1172, 1173, 16_384, 65_535, 65_536, 100, 5_000]
MESSAGES = 300


def say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


async def hear() -> Any:
    line = await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    return json.loads(line)


def messages(seed: int) -> Iterator[bytes]:
    stream = hashlib.shake_256(bytes([seed])).digest(1 << 20)
    for number in range(MESSAGES):
        size = SIZES[number % len(SIZES)]
        start = number * 7919 % ((1 << 20) - size)
        yield stream[start : start + size]


async def described(connection: Any) -> str:
    """The description with its candidates: libdatachannel gathers on its own."""
    while connection.gathering_state != GatheringState.COMPLETE:
        await asyncio.sleep(0.02)
    return str(connection.local_description.sdp)


async def main(role: str) -> None:
    connection = PeerConnection(RTCConfiguration(ice_servers=[]))
    if role == "offer":
        channel = await connection.create_data_channel("bulk")
        await connection.create_offer()
        say(sdp=await described(connection))
        await connection.set_remote_description((await hear())["sdp"], "answer")
        say(answered=True)
        await channel.wait_open()
    else:
        await connection.set_remote_description((await hear())["sdp"], "offer")
        with contextlib.suppress(RTCError):  # it may have made one by itself already
            await connection.create_answer()
        say(sdp=await described(connection))
        channel = await connection.accept_data_channel()
    say(opened=True)
    sending = asyncio.ensure_future(send(channel))
    whole, count = hashlib.sha256(), 0
    while count < MESSAGES:
        message = await channel.recv()
        whole.update(len(message).to_bytes(4, "big") + message)
        count += 1
    say(messages=count, digest=whole.hexdigest())
    await sending
    # What is on its way leaves while this waits for the test to end the process.
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


async def send(channel: Any) -> None:
    for message in messages(1):
        while channel.buffered_amount > 1 << 20:
            await asyncio.sleep(0.001)
        await channel.send(message)


asyncio.run(main(sys.argv[1]))
os._exit(0)
