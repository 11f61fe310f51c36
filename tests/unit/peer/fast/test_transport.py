"""The fast path's transport: which channel a message takes, and what its owner learns.

The connection is not made; SCTP is a stand-in that writes down what it is given.
"""

import asyncio
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pytest

from socks_tunnel.peer.channels import lane_of
from socks_tunnel.peer.fast.transport import FastTransport
from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import Data, Ping, UdpPacket
from support.sctp_network import Path, dtls_pair


class Channel:
    """As much of an RTCDataChannel as a transport looks at."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.readyState = "open"

    def on(self, event: str, callback: Any) -> None:
        assert event == "message"


class Sctp:
    """Writes down what is sent."""

    queue_limit = 12_345
    transport = None

    def __init__(self) -> None:
        self.sent: list[tuple[str, list[bytes]]] = []

    def send_many(self, channel: Channel, messages: list[bytes]) -> None:
        self.sent.append((channel.label, messages))

    def send_after_openings(self, channel: Channel, message: bytes) -> None:
        self.sent.append((channel.label, [message]))


class Owner:
    """Writes down what a transport tells."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("transport_"):
            raise AttributeError(name)
        return lambda *args: self.calls.append((name.removeprefix("transport_"), *args))


def up(lanes: int = 4) -> tuple[FastTransport, Sctp, Owner]:
    """A transport whose channels are open."""
    transport = FastTransport("gateway", IceSettings(), name="office")
    sctp, owner = Sctp(), Owner()
    transport.attach(cast("Any", owner))
    transport._sctp = cast("Any", sctp)
    for kind, label in (("control", "control"), ("datagram", "datagram")):
        transport.connection_channel(cast("Any", kind), cast("Any", Channel(label)))
    for number in range(lanes):
        transport.connection_channel("lane", cast("Any", Channel(f"lane-{number}")))
    transport._connection.state = "up"
    transport.connection_up()
    owner.calls.clear()
    return transport, sctp, owner


async def turn() -> None:
    """Lets the callbacks run that are due."""
    await asyncio.sleep(0)


async def test_each_message_takes_its_channel_in_one_call_each() -> None:
    transport, sctp, _ = up()
    flows = [Data(number, b"x" * number).encode() for number in range(1, 20)]
    datagrams = [
        UdpPacket(1, b"q" * 9).encode(),
        UdpPacket(2, b"r" * 9).encode(),
    ]
    transport.send_many([Ping(bytes(8)).encode(), *flows, *datagrams])
    sent = dict(sctp.sent)
    assert len(sctp.sent) == len(sent), "one call for each channel"
    assert sent["control"] == [Ping(bytes(8)).encode()]
    assert sent["datagram"] == datagrams
    for number in range(4):
        assert sent.get(f"lane-{number}", []) == [m for m in flows if lane_of(m, 4) == number]
    assert transport.buffered == sum(map(len, flows + datagrams))


async def test_only_a_transport_that_is_being_connected_sends_early() -> None:
    transport, sctp, _ = up()
    assert not transport.send_early(b"late")
    transport._connection.state = "connecting"
    assert transport.send_early(b"hello")
    assert sctp.sent == [("control", [b"hello"])]
    assert not FastTransport("gateway", IceSettings(), name="office").send_early(b"x")


async def test_lanes_that_come_late_do_not_move_flows() -> None:
    transport, sctp, _ = up()
    messages = [Data(number, b"").encode() for number in range(50)]
    transport.send_many(messages)
    before = sctp.sent[:]
    sctp.sent.clear()
    transport.connection_channel("lane", cast("Any", Channel("lane-9")))
    transport.send_many(messages)
    assert sctp.sent == before


async def test_what_has_left_is_reported_once_a_turn_without_control() -> None:
    transport, _, owner = up()
    transport.send_many([Data(1, bytes(93)).encode()])
    lane, control = transport._lanes[0], transport._control
    assert control is not None
    transport.sctp_drained([(lane, 60), (control, 1000)])
    transport.sctp_drained([(lane, 40)])
    assert owner.calls == [], "the turn is not over"
    transport.sctp_turn_ended()
    transport.sctp_turn_ended()
    assert owner.calls == [("writable", 100)]
    assert transport.buffered == 0


async def test_datagrams_that_are_too_long_are_dropped_counted_and_reported() -> None:
    transport, sctp, owner = up()
    transport._connection.remote = cast("Any", SimpleNamespace(max_message_size=1000))
    long = UdpPacket(1, bytes(2000)).encode()
    transport.send_many([long])
    await turn()
    assert sctp.sent == []
    assert transport._dropped == 1
    assert owner.calls == [("writable", len(long))]
    with pytest.raises(LocalProtocolError, match="over the peer's limit"):
        transport.send_many([Data(1, b"").encode(), Data(1, bytes(2000)).encode()])
    with pytest.raises(LocalProtocolError, match="shorter than its header"):
        transport.send_many([b"\x00"])
    assert sctp.sent == [], "nothing of the batch is taken"


async def test_a_channel_that_was_just_closed_takes_nothing() -> None:
    transport, sctp, owner = up(lanes=1)
    cast("Any", transport._lanes[0]).readyState = "closing"
    transport.send_many([Data(1, b"x").encode()])
    await turn()
    assert sctp.sent == []
    assert owner.calls == [("writable", 8)]


async def test_before_and_after_its_life_nothing_is_taken() -> None:
    transport, sctp, owner = up()
    connection: Any = transport._connection
    connection.state = "connecting"
    transport.send_many([Data(1, b"x").encode(), Ping(bytes(8)).encode()])
    assert [label for label, _ in sctp.sent] == ["control"]
    connection.state = "down"
    transport.send_many([Ping(bytes(8)).encode()])
    await turn()
    assert len(sctp.sent) == 1
    assert owner.calls == []
    assert transport.buffered == 0


async def test_what_came_is_handed_on_in_one_batch_of_each_kind() -> None:
    transport, _, owner = up()
    control, datagram, lane = transport._control, transport._datagram, transport._lanes[1]
    assert control is not None
    assert datagram is not None
    ping, data = Ping(bytes(8)).encode(), Data(5, b"x").encode()
    packet = UdpPacket(1, b"q" * 9).encode()
    transport.sctp_messages([(lane, data), (control, ping)])
    transport.sctp_messages([(datagram, packet), (lane, data)])
    transport.sctp_messages([(lane, b"short")])
    assert [call[0] for call in owner.calls] == ["error"]
    owner.calls.clear()
    transport.sctp_drained([(lane, 5)])
    transport.sctp_turn_ended()
    assert owner.calls == [
        ("control", [ping]),
        ("messages", [data, packet, data]),
        ("writable", 5),
    ]
    transport.sctp_turn_ended()
    assert len(owner.calls) == 3


async def test_a_failed_association_ends_it_once_after_what_came() -> None:
    transport, _, owner = up()
    lane = transport._lanes[0]
    transport.sctp_messages([(lane, Data(5, b"x").encode())])
    transport.sctp_failed("the peer sends nonsense")
    transport.sctp_failed("again")
    assert [call[0] for call in owner.calls] == ["error", "messages", "down"]
    assert owner.calls[-1] == ("down", "the peer sends nonsense")
    transport.sctp_messages([(lane, Data(5, b"x").encode())])
    transport.sctp_drained([(lane, 5)])
    transport.sctp_turn_ended()
    await turn()
    assert len(owner.calls) == 3


async def test_a_stall_of_the_sender_is_told_when_it_begins_and_when_it_ends() -> None:
    transport, _, owner = up()
    stall = transport._stall
    stall.timed_out(10.0, 0.3, 0.0)
    transport.sctp_turn_ended()
    assert owner.calls == []
    stall.look(stall.at)
    for _ in range(3):
        transport.sctp_turn_ended()
    assert owner.calls == [("stalled", pytest.approx(0.6))]
    stall.answered()
    for _ in range(3):
        transport.sctp_turn_ended()
    assert owner.calls[1:] == [("answered",)]
    cast("Any", transport._connection).state = "down"
    stall.timed_out(10.0, 0.3, 0.0)
    stall.look(stall.at)
    transport.sctp_turn_ended()
    assert len(owner.calls) == 2, "after the end nothing is told"


async def test_the_stall_is_that_of_its_association() -> None:
    transport = FastTransport("gateway", IceSettings(), name="office")
    transport.attach(cast("Any", Owner()))
    transport._make_sctp(cast("Any", dtls_pair(Path(), Path())[0]))
    assert transport._sctp is not None
    assert transport._stall is transport._sctp.path.sender.recovery.stall


async def test_flows_share_its_lanes_and_no_other_channel() -> None:
    transport = FastTransport("gateway", IceSettings(), name="office")
    transport.attach(cast("Any", Owner()))
    transport._make_sctp(cast("Any", dtls_pair(Path(), Path())[0]))
    assert transport._sctp is not None
    shared = {}
    for number, label in enumerate(("control", "datagram", "lane-0", "lane-63")):
        channel = Mock(
            id=number, label=label, ordered=True, maxRetransmits=None, maxPacketLifeTime=None
        )
        shared[label] = transport._sctp.exchange.way(channel).stream.shared
    assert shared == {"control": False, "datagram": False, "lane-0": True, "lane-63": True}


async def test_figures_before_there_are_any() -> None:
    transport = FastTransport("gateway", IceSettings(), name="office", congestion="bbr")
    assert transport.stats.rtt is None
    assert transport.heard_at is None
    assert transport.seen_at is None
    assert transport.queue_limit > 0
    assert up()[0].queue_limit == 12_345
