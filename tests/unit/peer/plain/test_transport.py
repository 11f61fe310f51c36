"""What the plain transport does with messages, over aiortc's channels without a connection."""

import asyncio
from typing import Any

import pytest
from aiortc import InvalidStateError, RTCDataChannel, RTCDataChannelParameters

from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.peer.channels import lane_of
from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.plain.transport import PlainTransport
from socks_tunnel.peer.transport import QUEUE_LIMIT
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import MESSAGE_MAX, Data, Goaway, Ping, Resume, UdpPacket


class Sctp:
    """What a channel asks of its SCTP transport: keeps what is sent, until the test lets it go."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.waiting: list[tuple[RTCDataChannel, int]] = []
        self.closed = False

    def _data_channel_open(self, channel: RTCDataChannel) -> None: ...

    def _data_channel_send(self, channel: RTCDataChannel, data: bytes) -> None:
        if self.closed:
            raise InvalidStateError
        self.sent.append((channel.label, data))
        channel._addBufferedAmount(len(data))
        self.waiting.append((channel, len(data)))

    def take(self, count: int) -> None:
        """Lets messages leave for the queue of SCTP, in order."""
        for channel, size in self.waiting[:count]:
            channel._addBufferedAmount(-size)
        del self.waiting[:count]

    def on(self, label: str) -> list[bytes]:
        return [data for channel, data in self.sent if channel == label]


class Owner:
    """Writes down what a transport says."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.raises: Exception | None = None

    def of(self, name: str) -> list[Any]:
        return [value for call, value in self.calls if call == name]

    def transport_up(self) -> None:
        self.calls.append(("up", None))

    def transport_control(self, messages: list[bytes]) -> None:
        self.calls.append(("control", messages))

    def transport_messages(self, messages: list[bytes]) -> None:
        self.calls.append(("messages", messages))
        if self.raises is not None:
            raise self.raises

    def transport_writable(self, drained: int) -> None:
        self.calls.append(("writable", drained))

    def transport_error(self, kind: str, what: str) -> None:
        self.calls.append(("error", kind))

    def transport_stalled(self, seconds: float) -> None:
        self.calls.append(("stalled", seconds))

    def transport_answered(self) -> None:
        self.calls.append(("answered", None))

    def transport_down(self, reason: str) -> None:
        self.calls.append(("down", reason))


class Setup:
    """A transport whose connection is up as far as it can tell, with channels of its own."""

    def __init__(self, lanes: int = 3) -> None:
        self.owner, self.sctp = Owner(), Sctp()
        self.transport = PlainTransport("endpoint", IceSettings(), name="laptop")
        self.transport.attach(self.owner)
        self.channels: dict[str, RTCDataChannel] = {}
        for label in ("control", "datagram", *(f"lane-{n}" for n in range(lanes))):
            self.open(label)

    def open(self, label: str) -> RTCDataChannel:
        channel = RTCDataChannel(self.sctp, RTCDataChannelParameters(label=label))  # type: ignore[arg-type] # as much of it as a channel uses
        channel._setReadyState("open")
        self.channels[label] = channel
        kind: Any = label if label in {"control", "datagram"} else "lane"
        self.transport.connection_channel(kind, channel)
        return channel

    def up(self) -> "Setup":
        self.transport._connection.state = "up"
        self.transport.connection_up()
        return self


async def turn() -> None:
    """Lets one turn of the event loop pass."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_soon(done.set)
    await done.wait()


def data(conn_id: int, size: int = 1) -> bytes:
    return Data(conn_id, bytes(size)).encode()


# --- out ----------------------------------------------------------------------------------------


async def test_each_message_takes_the_channel_of_its_type_in_order() -> None:
    setup = Setup().up()
    lanes = [data(conn_id) for conn_id in range(30)]
    control = [Ping(bytes(8)).encode(), Goaway(1).encode(), Resume().encode()]
    packet = UdpPacket(5, b"x").encode()
    setup.transport.send_many([control[0], *lanes[:10], packet, *lanes[10:], *control[1:]])
    assert setup.sctp.on("control") == control
    assert setup.sctp.on("datagram") == [packet]
    for number in range(3):
        mine = [message for message in lanes if lane_of(message, 3) == number]
        assert setup.sctp.on(f"lane-{number}") == mine
        assert mine


async def test_lanes_that_come_after_the_first_flow_message_are_not_sent_on() -> None:
    setup = Setup(lanes=1)
    setup.open("lane-1")
    setup.up().transport.send_many([data(1)])
    setup.open("lane-2")
    setup.transport.send_many([data(conn_id) for conn_id in range(100)])
    assert setup.sctp.on("lane-2") == []
    assert setup.sctp.on("lane-0")
    assert setup.sctp.on("lane-1")


async def test_what_has_left_is_told_once_a_turn_and_control_is_not_counted() -> None:
    setup = Setup().up()
    messages = [data(1, 100), data(2, 200), UdpPacket(3, bytes(50)).encode()]
    setup.transport.send_many([Ping(bytes(8)).encode(), *messages])
    assert setup.transport.buffered == sum(map(len, messages))
    setup.sctp.take(3)
    assert setup.owner.of("writable") == []
    await turn()
    assert setup.owner.of("writable") == [len(messages[0]) + len(messages[1])]
    assert setup.transport.buffered == len(messages[2])
    setup.sctp.take(1)
    await turn()
    assert sum(setup.owner.of("writable")) == sum(map(len, messages))
    assert setup.transport.buffered == 0


async def test_a_datagram_that_is_too_long_is_dropped_counted_and_told() -> None:
    setup = Setup().up()
    long = UdpPacket(1, bytes(MESSAGE_MAX)).encode()
    setup.transport.send_many([long, data(1)])
    setup.sctp.take(1)
    await turn()
    assert [message for _, message in setup.sctp.sent] == [data(1)]
    assert setup.owner.of("writable") == [len(long) + len(data(1))]
    assert setup.transport.stats.datagrams_dropped == 1
    assert setup.transport.buffered == 0


@pytest.mark.parametrize("bad", [b"", b"\x69", bytes([105]) + bytes(MESSAGE_MAX)])
async def test_what_cannot_be_sent_is_our_bug_and_nothing_of_the_batch_is(bad: bytes) -> None:
    setup = Setup().up()
    with pytest.raises(LocalProtocolError):
        setup.transport.send_many([data(1), bad])
    assert setup.sctp.sent == []
    assert setup.transport.buffered == 0


async def test_before_it_is_up_only_control_is_sent() -> None:
    setup = Setup()
    setup.transport.send_many([data(1), Ping(bytes(8)).encode(), UdpPacket(1, b"x").encode()])
    assert setup.sctp.sent == [("control", Ping(bytes(8)).encode())]
    assert setup.transport.buffered == 0


@pytest.mark.parametrize("how", ["closing", "refused"])
async def test_what_a_closed_channel_does_not_take_is_told_as_gone(how: str) -> None:
    setup = Setup().up()
    if how == "closing":
        for channel in setup.channels.values():
            channel._setReadyState("closing")
    else:
        setup.sctp.closed = True
    setup.transport.send_many([Ping(bytes(8)).encode(), data(1), UdpPacket(1, b"x").encode()])
    await turn()
    assert setup.sctp.sent == []
    assert sum(setup.owner.of("writable")) == len(data(1)) + len(UdpPacket(1, b"x").encode())


async def test_what_is_worth_queueing_is_a_constant() -> None:
    setup = Setup().up()
    assert setup.transport.queue_limit == QUEUE_LIMIT
    assert setup.transport.stats.queued == 0
    assert setup.transport.path is None


# --- in -----------------------------------------------------------------------------------------


async def test_what_comes_in_a_turn_is_one_batch() -> None:
    setup = Setup().up()
    for label, message in (("lane-0", data(1)), ("lane-2", data(2)), ("control", b"c")):
        setup.channels[label].emit("message", message)
    setup.channels["datagram"].emit("message", data(3))
    assert setup.owner.of("error") == ["wrong-channel"]
    assert setup.owner.of("messages") == []
    await turn()
    assert setup.owner.of("control") == [[b"c"]]
    assert setup.owner.of("messages") == [[data(1), data(2)]]


async def test_what_came_before_the_end_is_told_before_it() -> None:
    setup = Setup().up()
    setup.channels["lane-0"].emit("message", data(1))
    setup.transport.connection_lost("the peer closed the connection")
    assert [call for call, _ in setup.owner.calls] == ["up", "messages", "down"]
    setup.channels["lane-0"].emit("message", data(2))
    setup.transport.connection_lost("again")
    await turn()
    assert [call for call, _ in setup.owner.calls] == ["up", "messages", "down"]


async def test_after_a_close_of_ours_nothing_is_told() -> None:
    setup = Setup().up()
    setup.transport.send_many([data(1)])
    setup.sctp.take(1)
    setup.channels["lane-0"].emit("message", data(1))
    setup.transport.close("enough")
    assert setup.owner.of("down") == ["enough"]
    assert setup.transport.buffered == 0
    setup.transport.send_many([data(2)])
    await turn()
    assert [call for call, _ in setup.owner.calls] == ["up", "down"]
    await setup.transport.wait_closed()


async def test_a_bug_of_the_owner_s_ends_this_transport(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socks_tunnel.peer.over_aiortc._bugs", BugLog())
    setup = Setup().up()
    setup.owner.raises = KeyError("x" * 1000)
    setup.channels["lane-0"].emit("message", data(1))
    await turn()
    (reason,) = setup.owner.of("down")
    assert "hit a bug here (KeyError" in reason
    assert len(reason) < 400
    assert len([record for record in caplog.records if record.exc_info]) == 1
