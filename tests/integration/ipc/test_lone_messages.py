"""A small message that comes alone: it leaves in the call that sends it, and overtakes nothing."""

import asyncio
import socket
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import uvloop

from socks_tunnel.ipc import outgoing
from socks_tunnel.ipc.stream import Channel, connect
from socks_tunnel.protocol.ipc import FRAME_HEADER, IpcPing, encode_control
from socks_tunnel.protocol.lone import LONE_BYTES, LONE_SECONDS, Lone

LOOPS = [uvloop.new_event_loop, asyncio.new_event_loop]


def frame_header(kind: int, session: int, size: int) -> bytes:
    return FRAME_HEADER.pack(size + 3, kind, session)


class Peer(Channel):
    def __init__(self) -> None:
        super().__init__()
        self.closed: asyncio.Future[Exception | None] = asyncio.Future()

    def on_closed(self, error: Exception | None) -> None:
        self.closed.set_result(error)


class Ticking:
    """A clock that goes on by `step` with each look at it."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.now = 1.0

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_small_message_that_comes_alone_leaves_before_the_call_returns(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Ticking(2 * LONE_SECONDS)
    monkeypatch.setattr(outgoing, "time", SimpleNamespace(monotonic=clock.monotonic))

    async def exchange() -> None:
        left, right = socket.socketpair()
        right.setblocking(False)
        channel = await connect(left, Peer)
        loop = asyncio.get_running_loop()
        channel.send_message(3, b"keystroke")
        assert right.recv(100) == frame_header(0, 3, 9) + b"keystroke"
        channel.send_pieces(4, b"head", memoryview(b"rest"))
        assert right.recv(100) == frame_header(0, 4, 8) + b"headrest"

        clock.step = LONE_SECONDS / 2  # now one follows another closely
        channel.send_messages(5, [b"with"])
        channel.send_messages(5, [b"others"])
        with pytest.raises(BlockingIOError):
            right.recv(100)
        expected = frame_header(0, 5, 4) + b"with" + frame_header(0, 5, 6) + b"others"
        assert await loop.sock_recv(right, 100) == expected

        clock.step = 2 * LONE_SECONDS
        channel._outgoing._lone = Lone()
        channel.send_control(0, IpcPing(1))
        channel.send_message(6, b"not before what was sent earlier")
        with pytest.raises(BlockingIOError):
            right.recv(100)
        assert (await loop.sock_recv(right, 100)).startswith(encode_control(0, IpcPing(1)))

        channel.send_message(7, bytes(LONE_BYTES + 1))  # part of a transfer
        with pytest.raises(BlockingIOError):
            right.recv(100)
        await loop.sock_recv(right, 10_000)
        channel.abort()
        channel.send_message(8, b"too late")
        assert await loop.sock_recv(right, 100) == b""
        right.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(exchange())


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_lone_messages_keep_their_order_when_the_socket_is_full(
    loop_factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Ticking(2 * LONE_SECONDS)
    monkeypatch.setattr(outgoing, "time", SimpleNamespace(monotonic=clock.monotonic))
    messages = [number.to_bytes(4) * (1 + number * 7 % 500) for number in range(2_000)]

    async def exchange() -> bytes:
        left, right = socket.socketpair()
        right.setblocking(False)
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        channel = await connect(left, Peer)
        loop = asyncio.get_running_loop()
        for message in messages:
            channel.send_message(1, message)
        assert channel.buffered > 0 or channel._outgoing._out
        channel.close()
        got = bytearray()
        async with asyncio.timeout(60):
            while piece := await loop.sock_recv(right, 65_536):
                got += piece
        right.close()
        return bytes(got)

    expected = b"".join(frame_header(0, 1, len(each)) + each for each in messages)
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert runner.run(exchange()) == expected


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_lone_message_to_a_process_that_is_gone_ends_the_channel(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def exchange() -> Exception | None:
        left, right = socket.socketpair()
        channel = await connect(left, Peer)
        right.close()
        channel.send_message(1, b"nobody reads this")
        async with asyncio.timeout(60):
            return await channel.closed

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        error = runner.run(exchange())
    assert error is None or isinstance(error, BrokenPipeError)  # uvloop may read the end first
