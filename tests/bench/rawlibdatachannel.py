"""One end of a bare data channel of libdatachannel's, by way of its Python package aiolibdatachannel.

    rawlibdatachannel.py dial|answer libdatachannel

Needs the environment that `make rivals` makes, with Python 3.12 or later. rawload.py has the commands.
"""

import asyncio
import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import uvloop
from aiolibdatachannel import (
    ConnectionClosedError,
    DataChannel,
    DataChannelOptions,
    GatheringState,
    PeerConnection,
    RTCConfiguration,
    RTCError,
)

from bench.rawload import Answerer, Dialler, carry_out, lines, say, serve

LOOK_AGAIN = 0.001
"""Seconds between two looks at a queue that is to fall below its mark: the package tells nobody of that
who does not want to wait in `send` for an empty queue."""


class Channel:
    """A data channel with the names that rawload.py wants."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.bufferedAmountLowThreshold = 0
        self.handlers: dict[str, list[Callable[..., Any]]] = defaultdict(list)
        self.channel: DataChannel | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    def adopt(self, channel: DataChannel) -> None:
        """Learns of the package's channel, once that is there."""
        self.channel = channel
        self.start(self.read(channel))

    def start(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def create(self, connection: PeerConnection, options: DataChannelOptions) -> None:
        self.adopt(await connection.create_data_channel(self.label, options))

    async def read(self, channel: DataChannel) -> None:
        try:
            await channel.wait_open()
            self.tell("open")
            while True:
                self.tell("message", await channel.recv())
        except ConnectionClosedError:
            return

    def tell(self, event: str, *arguments: Any) -> None:
        for handler in list(self.handlers[event]):
            handler(*arguments)

    def on(self, event: str, handler: Callable[..., Any]) -> None:
        self.handlers[event].append(handler)

    def once(self, event: str, handler: Callable[..., Any]) -> None:
        def only(*arguments: Any) -> None:
            self.handlers[event].remove(only)
            handler(*arguments)

        self.on(event, only)

    @property
    def readyState(self) -> str:
        return "open" if self.channel is not None and self.channel.is_open else "connecting"

    @property
    def bufferedAmount(self) -> int:
        assert self.channel is not None
        amount: int = self.channel.buffered_amount
        if amount > self.bufferedAmountLowThreshold and self.handlers["bufferedamountlow"]:
            asyncio.get_running_loop().call_later(LOOK_AGAIN, self.look)
        return amount

    def look(self) -> None:
        assert self.channel is not None
        if self.channel.buffered_amount <= self.bufferedAmountLowThreshold:
            self.tell("bufferedamountlow")
        else:
            asyncio.get_running_loop().call_later(LOOK_AGAIN, self.look)

    def send(self, data: bytes | str) -> None:
        assert self.channel is not None
        sending = self.channel.send(data, wait_for_drain=False)
        try:
            sending.send(None)
        except StopIteration:  # as it does not wait
            return
        raise RuntimeError("aiolibdatachannel waited in send")

    def close(self) -> None:
        assert self.channel is not None
        self.channel.close()


async def described(connection: PeerConnection) -> str:
    """The description with its candidates."""
    while connection.gathering_state != GatheringState.COMPLETE:
        await asyncio.sleep(0.01)
    description = connection.local_description
    assert description is not None
    return str(description.sdp)


async def take(connection: PeerConnection, answerer: Answerer) -> None:
    while True:
        given = await connection.accept_data_channel()
        channel = Channel(given.label)
        answerer.opened(channel)
        channel.adopt(given)


async def main(role: str) -> None:
    following = await lines()
    connection = PeerConnection(RTCConfiguration(ice_servers=[]))
    if role == "answer":
        answerer = Answerer()
        taking = asyncio.get_running_loop().create_task(take(connection, answerer))
        await connection.set_remote_description((await following())["sdp"], "offer")
        with contextlib.suppress(RTCError):  # it may have made one by itself already
            await connection.set_local_description("answer")
        say(sdp=await described(connection))
        await serve(answerer, following)
        taking.cancel()
    else:

        def create(label: str, **options: Any) -> Channel:
            channel = Channel(label)
            known = DataChannelOptions(
                ordered=options.get("ordered", True), max_retransmits=options.get("maxRetransmits")
            )
            channel.start(channel.create(connection, known))
            return channel

        opened = asyncio.Event()
        first = create("first")
        first.on("open", opened.set)
        await asyncio.sleep(0)
        offer = (await connection.create_offer()).sdp
        # Without candidates. libdatachannel gives an answer to ICE before it stores it, and checks that
        # come meanwhile would begin DTLS without it (tests/integration/test_fast_interop.py). So the
        # other end learns our addresses from our checks (RFC 8445, 7.3.1.3).
        say(sdp="".join(each for each in offer.splitlines(True) if "candidate" not in each))
        await connection.set_remote_description((await following())["sdp"], "answer")
        await asyncio.wait_for(opened.wait(), 30)
        await carry_out(Dialler(create), following)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(sys.argv[1]))
    sys.stdout.flush()
    # Its threads may still call back; nothing here is worth an orderly end.
    os._exit(0)
