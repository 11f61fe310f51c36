"""The IPC shell: fake transport for the edges, a socketpair under both loops for the whole."""

import asyncio
import socket
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import uvloop

from socks_tunnel.ipc.outgoing import PORTION
from socks_tunnel.ipc.stream import Channel, connect
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.ipc import (
    BODY_MAX,
    CONTROL_MAX,
    FRAME_HEADER,
    Control,
    Credit,
    FrameKind,
    IpcPing,
    Reload,
    encode_control,
)


def frame_header(kind: int, session: int, size: int) -> bytes:
    return FRAME_HEADER.pack(size + 3, kind, session)


LOOPS = [uvloop.new_event_loop, asyncio.new_event_loop]


class FakeTransport:
    """Remembers what was written; as a uvloop transport, it is no asyncio.Transport."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.writes = 0
        self.closed = False
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.pieces.append(bytes(data))

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.writes += 1
        self.pieces.extend(bytes(piece) for piece in pieces)

    def get_write_buffer_size(self) -> int:
        return sum(len(piece) for piece in self.pieces)

    def get_extra_info(self, name: str) -> None:
        del name  # without a socket, everything goes through the transport

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.aborted = True


class Recorder(Channel):
    def __init__(self) -> None:
        super().__init__()
        self.events: list[Any] = []
        self.react: Callable[[], None] | None = None

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        self.events += [("message", session, bytes(body)) for body in messages]
        if self.react is not None:
            self.react()

    def on_control(self, session: int, message: Control) -> None:
        self.events.append(("control", session, message))

    def on_closed(self, error: Exception | None) -> None:
        self.events.append(("closed", error))


async def recorder() -> tuple[Recorder, FakeTransport]:
    channel, transport = Recorder(), FakeTransport()
    channel.connection_made(transport)  # type: ignore[arg-type] # as uvloop's, it is duck-typed
    return channel, transport


def feed(channel: Channel, data: bytes, step: int | None = None) -> None:
    step = step or len(data)
    for start in range(0, len(data), step):
        piece = data[start : start + step]
        while piece:
            room = memoryview(channel.get_buffer(-1))
            count = min(len(room), len(piece))
            room[:count] = piece[:count]
            channel.buffer_updated(count)
            piece = piece[count:]


@pytest.mark.parametrize("step", [None, 1, 5])
async def test_frames_arrive_in_order_however_they_are_cut(step: int | None) -> None:
    channel, _ = await recorder()
    data = (
        frame_header(0, 3, 4) + b"abcd" + encode_control(0, IpcPing(1)) + frame_header(0, 65535, 0)
    )
    feed(channel, data, step)
    assert channel.events == [
        ("message", 3, b"abcd"),
        ("control", 0, IpcPing(1)),
        ("message", 65535, b""),
    ]


async def test_what_is_sent_in_one_turn_leaves_together_at_its_end() -> None:
    channel, transport = await recorder()
    channel.send_message(7, b"payload")
    channel.send_pieces(7, b"head", memoryview(b"data"))
    channel.send_messages(8, [b"x", b"y"])
    assert transport.pieces == []
    await asyncio.sleep(0)
    assert transport.writes == 1
    assert transport.pieces == [
        frame_header(0, 7, 7),
        b"payload",
        frame_header(0, 7, 8) + b"head",
        b"data",
        frame_header(0, 8, 1),
        b"x",
        frame_header(0, 8, 1),
        b"y",
    ]
    assert channel.buffered == sum(map(len, transport.pieces))


async def test_what_one_end_sends_the_other_understands() -> None:
    sender, transport = await recorder()
    receiver, _ = await recorder()
    sender.send_control(0, Credit(9, 1, 0))
    sender.send_message(1, bytes(BODY_MAX))
    await asyncio.sleep(0)
    feed(receiver, b"".join(transport.pieces))
    assert receiver.events == [
        ("control", 0, Credit(9, 1, 0)),
        ("message", 1, bytes(BODY_MAX)),
    ]


async def test_too_long_a_message_or_control_frame_is_refused_before_it_breaks_the_stream() -> None:
    channel, transport = await recorder()
    with pytest.raises(ValueError, match="over the IPC limit"):
        channel.send_message(1, bytes(BODY_MAX + 1))
    with pytest.raises(ValueError, match="over the IPC limit"):
        channel.send_pieces(1, b"x", bytes(BODY_MAX))
    with pytest.raises(ValueError, match="over the limit"):
        channel.send_control(0, Reload({"x": bytes(CONTROL_MAX)}))
    assert transport.pieces == []


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"\xff\xff\xff\xff\0\0\0", "ipc-frame"),
        (b"\0\0\0\2\0\0\0", "ipc-frame"),
        (b"\0\0\0\3\3\0\0", "ipc-frame"),
        (frame_header(1, 0, 1) + b"\xc1", "ipc-control"),
        (frame_header(1, 0, 1) + b"\x90", "ipc-control"),
    ],
    ids=["length-over", "length-under", "unknown-kind", "not-msgpack", "no-op"],
)
async def test_a_frame_out_of_bounds_ends_the_channel(data: bytes, kind: str) -> None:
    channel, transport = await recorder()
    feed(channel, frame_header(0, 1, 1) + b"x")
    feed(channel, data)
    assert transport.aborted
    channel.connection_lost(None)
    assert channel.events[0] == ("message", 1, b"x")
    what, error = channel.events[1]
    assert what == "closed"
    assert isinstance(error, RemoteProtocolError)
    assert error.kind == kind
    assert len(channel.events) == 2


class Failing(Recorder):
    """A channel whose handlers have a bug: in all messages of session 1, and in pings."""

    def __init__(self) -> None:
        super().__init__()
        self.fatal = False

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        if session == 1:
            raise ZeroDivisionError("in a message")
        super().on_messages(session, messages)

    def on_control(self, session: int, message: Control) -> None:
        if isinstance(message, IpcPing):
            raise LookupError("in a ping")
        super().on_control(session, message)

    def on_bug(self, session: int, message: Control | None, error: Exception) -> None:
        self.events.append(("bug", session, message, str(error)))
        if self.fatal:
            raise error


async def test_a_bug_in_a_handler_costs_what_it_was_given_and_not_the_channel(
    caplog: pytest.LogCaptureFixture,
) -> None:
    channel, transport = Failing(), FakeTransport()
    channel.connection_made(transport)  # type: ignore[arg-type] # as uvloop's, it is duck-typed
    data = frame_header(0, 1, 1) + b"x" + encode_control(0, IpcPing(1)) + frame_header(0, 2, 1)
    feed(channel, 3 * (data + b"y"))
    once = [
        ("bug", 1, None, "in a message"),
        ("bug", 0, IpcPing(1), "in a ping"),
        ("message", 2, b"y"),
    ]
    assert channel.events == 3 * once
    assert not transport.aborted
    assert caplog.text.count("ZeroDivisionError: in a message") == 1, "once a kind"
    assert "control 'ping' of session 0 met a bug" in caplog.text
    channel.send_message(2, b"z")
    await asyncio.sleep(0)
    assert transport.pieces[-1] == b"z"


async def test_a_bug_that_costs_the_channel_is_its_error() -> None:
    channel, transport = Failing(), FakeTransport()
    channel.fatal = True
    channel.connection_made(transport)  # type: ignore[arg-type] # as uvloop's, it is duck-typed
    feed(channel, encode_control(0, IpcPing(1)) + frame_header(0, 2, 1) + b"y")
    assert transport.aborted
    channel.connection_lost(None)
    assert [event[0] for event in channel.events] == ["bug", "closed"]
    error = channel.events[1][1]
    assert isinstance(error, RemoteProtocolError)
    assert str(error) == "a bug: in a ping"


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_the_stream_goes_on_behind_a_bug(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def exchange() -> None:
        left, right = socket.socketpair()
        channel = await connect(left, Failing)
        right.sendall(encode_control(0, IpcPing(1)))
        async with asyncio.timeout(60):
            while not channel.events:
                await asyncio.sleep(0.001)
            right.sendall(frame_header(0, 2, 1) + b"y")
            while len(channel.events) < 2:
                await asyncio.sleep(0.001)
        assert channel.events[1] == ("message", 2, b"y")
        channel.close()
        right.close()
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(exchange())


async def test_nothing_is_delivered_after_a_handler_aborted() -> None:
    channel, transport = await recorder()
    channel.react = channel.abort
    feed(channel, frame_header(0, 1, 1) + b"x" + frame_header(0, 2, 1) + b"y")
    assert transport.aborted
    assert channel.events == [("message", 1, b"x")]


async def test_sending_before_and_after_the_connection_does_nothing() -> None:
    channel = Recorder()
    channel.send_message(1, b"x")
    channel.send_pieces(1, b"x", b"y")
    channel.send_control(0, IpcPing(1))
    assert channel.closing
    assert channel.buffered == 0
    channel, transport = await recorder()
    assert not channel.closing
    channel.close()
    channel.send_message(1, b"x")
    channel.send_pieces(1, b"x", b"y")
    channel.send_control(0, IpcPing(1))
    assert transport.pieces == []
    assert transport.closed


async def test_paused_follows_the_transport() -> None:
    channel, _ = await recorder()
    states = [channel.paused]
    channel.pause_writing()
    states.append(channel.paused)
    channel.resume_writing()
    states.append(channel.paused)
    assert states == [False, True, False]


def bodies(transport: FakeTransport) -> list[bytes]:
    return transport.pieces[1::2]


async def test_what_is_urgent_overtakes_what_waits_while_the_transport_is_full() -> None:
    channel, transport = await recorder()
    channel.pause_writing()
    channel.send_messages(8, [b"one", memoryview(bytearray(b"two"))])
    await asyncio.sleep(0)
    channel.send_message(8, b"three")
    channel.send_urgent(8, [b"datagram", memoryview(b"and another")])
    await asyncio.sleep(0)
    assert transport.pieces == []
    assert channel.urgent == 8 + 11 + 2 * FRAME_HEADER.size
    assert channel.buffered == channel.urgent + 11 + 3 * FRAME_HEADER.size
    channel.resume_writing()
    await asyncio.sleep(0)
    assert bodies(transport) == [b"datagram", b"and another", b"one", b"two", b"three"]
    assert (channel.urgent, transport.writes) == (0, 2)


async def test_nothing_is_overtaken_while_the_transport_takes_all() -> None:
    channel, transport = await recorder()
    channel.send_message(8, b"one")
    channel.send_urgent(8, [b"datagram"])
    await asyncio.sleep(0)
    assert bodies(transport) == [b"one", b"datagram"]
    assert transport.writes == 1


async def test_urgent_messages_keep_their_order_while_the_transport_empties() -> None:
    channel, transport = await recorder()
    channel.pause_writing()
    channel.send_message(8, b"one")
    await asyncio.sleep(0)
    channel.resume_writing()
    # Something still waits, so what comes now has to be urgent for the caller too.
    assert channel.paused
    channel.send_urgent(8, [b"first"])
    channel.pause_writing()
    channel.send_urgent(8, [b"second"])
    channel.resume_writing()
    await asyncio.sleep(0)
    assert bodies(transport) == [b"first", b"second", b"one"]
    assert not channel.paused


async def test_what_is_urgent_overtakes_credit_and_no_other_control_message() -> None:
    channel, transport = await recorder()
    channel.pause_writing()
    channel.send_message(8, b"one")
    channel.send_control(8, Credit(1, 2, 3))
    channel.send_urgent(8, [b"datagram"])
    channel.send_control(8, Reload({}))
    channel.send_urgent(8, [b"for what the control message tells"])
    await asyncio.sleep(0)
    channel.resume_writing()
    await asyncio.sleep(0)
    assert transport.pieces == [
        *(frame_header(FrameKind.MESSAGE, 8, 8), b"datagram"),
        *(frame_header(FrameKind.MESSAGE, 8, 3), b"one"),
        encode_control(8, Credit(1, 2, 3)),
        encode_control(8, Reload({})),
        *(frame_header(FrameKind.MESSAGE, 8, 34), b"for what the control message tells"),
    ]
    # From here on nothing waits that may not be overtaken.
    channel.pause_writing()
    channel.send_message(8, b"two")
    channel.send_urgent(8, [b"three"])
    await asyncio.sleep(0)
    channel.resume_writing()
    await asyncio.sleep(0)
    assert transport.pieces[-3:] == [b"three", frame_header(FrameKind.MESSAGE, 8, 3), b"two"]


async def test_the_transport_gets_a_portion_at_a_time_while_it_is_slow() -> None:
    channel, transport = await recorder()
    channel.pause_writing()
    for _ in range(10):
        channel.send_message(8, bytes(50_000))
        await asyncio.sleep(0)
    writelines = transport.writelines

    def full_again(pieces: Iterable[bytes]) -> None:
        writelines(pieces)
        channel.pause_writing()

    transport.writelines = full_again  # type: ignore[method-assign]
    channel.resume_writing()
    await asyncio.sleep(0)
    given = transport.get_write_buffer_size()
    assert PORTION <= given < PORTION + 50_000 + FRAME_HEADER.size
    assert channel.buffered == 10 * (50_000 + FRAME_HEADER.size)
    channel.send_urgent(8, [b"datagram"])
    channel.close()
    assert transport.get_write_buffer_size() == 10 * (50_000 + FRAME_HEADER.size) + (
        8 + FRAME_HEADER.size
    )


class Peer(Recorder):
    def __init__(self) -> None:
        super().__init__()
        self.closed: asyncio.Future[Exception | None] = asyncio.Future()

    def on_closed(self, error: Exception | None) -> None:
        self.closed.set_result(error)


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_a_socketpair_carries_everything_and_closing_flushes(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def exchange() -> list[Any]:
        left, right = socket.socketpair()
        sender, receiver = await connect(left, Peer), await connect(right, Peer)
        for size in range(0, 60_000, 1_999):
            sender.send_message(size % 5, bytes(size))
            sender.send_control(0, IpcPing(size))
        sender.close()
        async with asyncio.timeout(60):
            assert await receiver.closed is None
            assert await sender.closed is None
        return receiver.events

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        events = runner.run(exchange())
    expected: list[Any] = []
    for size in range(0, 60_000, 1_999):
        expected.append(("message", size % 5, bytes(size)))
        expected.append(("control", 0, IpcPing(size)))
    assert events == expected


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_what_the_other_side_said_last_is_read_although_a_write_fails(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def exchange() -> tuple[list[Any], Exception | None]:
        left, right = socket.socketpair()
        channel = await connect(left, Peer)
        right.sendall(b"".join(encode_control(0, IpcPing(number)) for number in range(8000)))
        right.close()
        channel.send_control(0, IpcPing(0))
        channel._outgoing.flush()  # before the event loop looks at what can be read
        async with asyncio.timeout(60):
            return channel.events, await channel.closed

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        events, error = runner.run(exchange())
    assert isinstance(error, BrokenPipeError)
    assert events == [("control", 0, IpcPing(number)) for number in range(8000)]


@pytest.mark.parametrize("loop_factory", LOOPS)
def test_last_words_out_of_bounds_are_the_error_of_the_channel(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def exchange() -> Exception | None:
        left, right = socket.socketpair()
        channel = await connect(left, Peer)
        right.sendall(frame_header(200, 0, 0) + encode_control(0, IpcPing(1)))
        right.close()
        channel.send_control(0, IpcPing(0))
        channel._outgoing.flush()
        async with asyncio.timeout(60):
            error = await channel.closed
        assert channel.events == []
        return error

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        assert isinstance(runner.run(exchange()), RemoteProtocolError)


@pytest.mark.parametrize("loop_factory", LOOPS)
@pytest.mark.filterwarnings("error")
def test_a_stream_that_is_lost_while_it_is_connected_leaves_no_socket(
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    class Hasty(Peer):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self.send_control(0, IpcPing(0))
            self._outgoing.flush()

    async def exchange() -> tuple[Exception | None, int]:
        left, right = socket.socketpair()
        right.close()
        channel = await connect(left, Hasty)
        async with asyncio.timeout(60):
            return await channel.closed, left.fileno()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        error, descriptor = runner.run(exchange())
    assert isinstance(error, BrokenPipeError)
    assert descriptor == -1
