"""What a connection makes of calls and channels, without a path to anywhere."""

from typing import Any

import pytest
from aiortc import RTCDataChannel, RTCDataChannelParameters

from socks_tunnel.peer.channels import ChannelKind
from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.plain.connection import Connection
from socks_tunnel.peer.transport import TransportError
from socks_tunnel.protocol.errors import LocalProtocolError


class Owner:
    """Writes down what a connection says, and ends it as a transport does."""

    def __init__(self) -> None:
        self.channels: list[tuple[ChannelKind, str]] = []
        self.errors: list[str] = []
        self.ups = 0
        self.reasons: list[str] = []
        self.connection: Connection

    def connection_channel(self, kind: ChannelKind, channel: RTCDataChannel) -> None:
        self.channels.append((kind, channel.label))

    def connection_up(self) -> None:
        self.ups += 1

    def connection_error(self, kind: str, what: str) -> None:
        self.errors.append(kind)

    def connection_lost(self, reason: str) -> None:
        self.reasons.append(reason)
        self.connection.end()


class Sctp:
    """What a channel asks of its SCTP transport."""

    def _data_channel_open(self, channel: RTCDataChannel) -> None: ...


def made(role: Any = "endpoint", **options: Any) -> tuple[Connection, Owner]:
    owner = Owner()
    owner.connection = Connection(owner, name="laptop", role=role, ice=IceSettings(), **options)
    return owner.connection, owner


def channel(label: str, **parameters: Any) -> RTCDataChannel:
    """A channel as aiortc hands over one of the peer's."""
    settings: dict[str, Any] = {"label": label, "protocol": "socks-tunnel/1"}
    if label == "datagram":
        settings |= {"ordered": False, "maxRetransmits": 0}
    return RTCDataChannel(Sctp(), RTCDataChannelParameters(**(settings | parameters)), False)  # type: ignore[arg-type] # as much of it as a channel uses


async def test_an_endpoint_is_up_with_one_channel_of_each_kind() -> None:
    connection, owner = made()
    connection.state = "connecting"
    ups = []
    for label in ("lane-3", "control", "datagram", "lane-0"):
        connection._channel_arrived(channel(label))
        ups.append(owner.ups)
    assert ups == [0, 0, 1, 1]
    assert owner.channels == [
        ("lane", "lane-3"),
        ("control", "control"),
        ("datagram", "datagram"),
        ("lane", "lane-0"),
    ]


@pytest.mark.parametrize(
    "parameters", [{"protocol": ""}, {"ordered": False}, {"maxRetransmits": 3}]
)
async def test_an_unsuitable_channel_ends_it(parameters: dict[str, Any]) -> None:
    connection, owner = made()
    connection.state = "connecting"
    connection._channel_arrived(channel("lane-0", **parameters))
    assert owner.errors == ["channel"]
    (reason,) = owner.reasons
    assert reason.startswith("the peer opened an unsuitable channel 'lane-0'")
    assert owner.channels == []
    connection._channel_arrived(channel("control"))
    assert owner.channels == []  # it has ended


async def test_a_label_is_opened_once() -> None:
    connection, owner = made()
    connection.state = "connecting"
    connection._channel_arrived(channel("lane-0"))
    connection._channel_arrived(channel("lane-0"))
    assert owner.reasons[0].startswith("the peer opened a second channel")


async def test_a_gateway_takes_no_channel_of_its_peer() -> None:
    connection, owner = made("gateway")
    connection.state = "connecting"
    connection._channel_arrived(channel("x" * 70_000))
    (reason,) = owner.reasons
    assert reason.startswith("the peer opened a channel, 'xxx")
    assert len(reason) < 200


@pytest.mark.parametrize("lanes", [0, 65])
async def test_the_number_of_lanes_is_bounded(lanes: int) -> None:
    with pytest.raises(LocalProtocolError, match="1 to 64 lanes"):
        made("gateway", lanes=lanes)


async def test_calls_out_of_order_are_our_bug() -> None:
    gateway, _ = made("gateway")
    endpoint, _ = made()
    for call in (
        gateway.accept_answer("v=0"),
        gateway.accept_offer("v=0"),
        endpoint.create_offer(),
    ):
        with pytest.raises(LocalProtocolError):
            await call


async def test_after_its_end_it_cannot_begin() -> None:
    connection, _ = made("gateway")
    connection.end()
    connection.end(linger=1)
    await connection.closed()
    assert connection.state == "down"
    with pytest.raises(TransportError, match="closed"):
        await connection.create_offer()


async def test_before_anything_has_come_it_says_what_it_waits_for() -> None:
    connection, _ = made("gateway")
    assert connection.stage == "no answer came"
    assert connection.path is None
    assert connection.max_message == 65_536
