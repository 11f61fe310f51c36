"""A link against peers that do what they must not, and against strangers' datagrams.

Each ends in one sentence for the operator or in a count: never in a traceback, never in a hang.

This file is long because each way to misbehave is a test of its own, on both transports.
"""

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import msgpack
import pytest
import uvloop

from integration.link_pair import RawEndpoint, RawGateway, Recorder, Site, hello, site
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.peer import Link
from socks_tunnel.peer.plain import transport as transport_module
from socks_tunnel.protocol.link import EARLY_MESSAGES_MAX
from socks_tunnel.protocol.messages import (
    Data,
    Goaway,
    MessageType,
    OpenConnection,
    Ping,
    Pong,
    Resume,
    UdpPacket,
    decode,
    message_header,
)
from support.compiled import pure_only

pytestmark = pytest.mark.usefixtures("path")


@pytest.fixture(autouse=True)
def no_traceback(caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest) -> Any:
    """Nothing that a peer does makes a traceback at the default log level."""
    caplog.set_level(logging.INFO)
    yield
    if "expects_traceback" not in request.fixturenames:
        assert [record for record in caplog.records if record.exc_info] == []


@pytest.fixture
def expects_traceback() -> None:
    """Mark a test in which the bug is ours."""


async def greeted(here: Site, **options: Any) -> tuple[RawGateway, Link, Recorder]:
    """A raw gateway with an endpoint link that is up."""
    endpoint, seen = here.endpoint(**options)
    gateway = RawGateway(here, endpoint)
    gateway.open_all()
    await gateway.connect()
    gateway.channels["control"].send(hello().encode())
    await seen.up()
    await gateway.until(lambda: len(gateway.on("control")) >= 2)  # HELLO and the first PING
    return gateway, endpoint, seen


async def echo(gateway: RawGateway) -> None:
    """See that the endpoint still answers, and so has dealt with all that `control` brought."""
    before = len(gateway.on("control"))
    gateway.channels["control"].send(Ping(b"the echo").encode())
    await gateway.until(lambda: Pong(b"the echo").encode() in gateway.on("control")[before:])


def sctp_of(gateway: RawGateway) -> Any:
    sctp = gateway.pc.sctp
    assert sctp is not None
    return sctp


# --- channels ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "options"),
    [
        ("lane-64", {}),
        ("lane-", {}),
        ("lane-01", {}),
        ("lane--1", {}),
        ("x" * 1000, {}),
        ("", {}),
        ("control", {"protocol": "socks-tunnel/2"}),
        ("control", {"protocol": ""}),
        ("control", {"ordered": False}),
        ("control", {"maxRetransmits": 1}),
        ("control", {"maxPacketLifeTime": 100}),
        ("datagram", {"maxRetransmits": 0}),
        ("datagram", {"ordered": False}),
        ("datagram", {"ordered": False, "maxRetransmits": 1}),
        ("lane-0", {"ordered": False}),
        ("lane-0", {"maxRetransmits": 0}),
    ],
)
async def test_unsuitable_channels_end_the_link(label: str, options: dict[str, Any]) -> None:
    async with site() as here:
        endpoint, seen = here.endpoint()
        gateway = RawGateway(here, endpoint)
        gateway.open(label, **options)
        await gateway.connect()
        reason = await seen.down()
        assert reason.startswith("the peer opened an unsuitable channel")
        assert len(reason) < 200
        assert endpoint.protocol.errors["channel"] == 1


@pytest.mark.parametrize("label", ["control", "datagram", "lane-1"])
async def test_a_label_is_opened_once(label: str) -> None:
    async with site() as here:
        gateway, _, seen = await greeted(here)
        options = {"ordered": False, "maxRetransmits": 0} if label == "datagram" else {}
        gateway.open(label, **options)
        assert (await seen.down()).startswith("the peer opened a second channel")


async def test_a_gateway_accepts_no_channels() -> None:
    async with site() as here:
        gateway, seen = here.gateway()
        endpoint = RawEndpoint(here, gateway)
        await endpoint.connect()
        endpoint.channels["control"].send(hello().encode())
        await seen.up()
        stray = endpoint.pc.createDataChannel("lane-9", protocol="socks-tunnel/1")
        stray.on("open", lambda: stray.send(Data(1, b"x").encode()))
        assert (await seen.down()).startswith("the peer opened a channel, 'lane-9'")


async def test_a_closed_channel_ends_the_link() -> None:
    async with site() as here:
        gateway, _, seen = await greeted(here)
        gateway.channels["lane-0"].close()
        assert await seen.down() == "the peer closed the connection"


async def test_lanes_that_come_late_are_received_on_only() -> None:
    async with site() as here:
        gateway, endpoint, seen = await greeted(here)
        late = gateway.open("lane-63")
        await gateway.until(lambda: late.readyState == "open")
        endpoint.send_many([Data(1, b"the lanes are chosen").encode()])
        too_late = gateway.open("lane-62")
        await gateway.until(lambda: too_late.readyState == "open")
        too_late.send(Data(1, b"on a late lane").encode())
        await seen.until(lambda: bool(seen.messages))
        for conn_id in range(100):
            endpoint.send_many([Data(conn_id, b"back").encode()])
        lanes = ("lane-0", "lane-1", "lane-63")
        await gateway.until(lambda: sum(len(gateway.on(lane)) for lane in lanes) == 101)
        assert all(gateway.on(lane) for lane in lanes)


# --- HELLO ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "sentence"),
    [
        (Ping(bytes(8)).encode(), "no HELLO but has type 1"),
        (OpenConnection(1, "example.com", 80).encode(), "no HELLO but has type 14"),
        (message_header(99, 0), "no HELLO but has type 99"),
        (b"\x0a", "shorter than its header"),
        (message_header(10, 0), "HELLO is malformed: it ends too early"),
        (message_header(10, 0) + msgpack.packb({"version": 1}), "'session' is absent"),
        (message_header(10, 0) + b"\xc1", "no HELLO: HELLO is malformed"),
    ],
)
async def test_the_first_message_must_be_hello(first: bytes, sentence: str) -> None:
    async with site() as here:
        endpoint, seen = here.endpoint()
        gateway = RawGateway(here, endpoint)
        gateway.open_all()
        await gateway.connect()
        gateway.channels["control"].send(first)
        assert sentence in await seen.down()
        assert seen.calls == ["down"]


async def test_another_version_is_told_to_both_operators(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with site() as here:
        gateway, at_gateway = here.gateway(hello=hello(version=2, software="newer 9"))
        endpoint, at_endpoint = here.endpoint()
        await gateway.accept_answer(await endpoint.accept_offer(await gateway.create_offer()))
        assert await at_endpoint.down() == "the peer speaks protocol version 2, we speak 1"
        await at_gateway.down()
        assert (
            "link endpoint: the peer (newer 9) speaks protocol version 2, we speak 1; "
            "upgrade one side"
        ) in caplog.text


async def test_the_refusal_of_a_version_says_our_own() -> None:
    async with site() as here:
        endpoint, seen = here.endpoint()
        gateway = RawGateway(here, endpoint)
        gateway.open_all()
        await gateway.connect()
        gateway.channels["control"].send(hello(version=7).encode())
        await gateway.until(lambda: bool(gateway.on("control")))
        assert decode(gateway.on("control")[0]) == hello(session=bytes(16))
        await seen.down()


async def test_a_gateway_refuses_another_version_too() -> None:
    async with site() as here:
        gateway, seen = here.gateway()
        endpoint = RawEndpoint(here, gateway)
        await endpoint.connect()
        endpoint.channels["control"].send(hello(version=3).encode())
        assert await seen.down() == "the peer speaks protocol version 3, we speak 1"


async def test_a_gateway_refuses_another_session() -> None:
    async with site() as here:
        gateway, seen = here.gateway()
        endpoint = RawEndpoint(here, gateway)
        await endpoint.connect()
        endpoint.channels["control"].send(hello(session=bytes(16)).encode())
        assert await seen.down() == "the peer's HELLO names another session than ours"


async def test_flow_messages_that_overtake_hello_are_kept() -> None:
    async with site() as here:
        endpoint, seen = here.endpoint()
        gateway = RawGateway(here, endpoint)
        gateway.open_all()
        await gateway.connect()
        early = [OpenConnection(n + 1, "example.com", 80).encode() for n in range(50)]
        for message in early:
            gateway.channels["lane-0"].send(message)
        gateway.channels["control"].send(hello().encode())
        await seen.until(lambda: len(seen.messages) == len(early))
        assert seen.messages == early
        assert seen.calls[0] == "up"


async def test_only_so_many_messages_before_hello() -> None:
    async with site() as here:
        endpoint, seen = here.endpoint()
        gateway = RawGateway(here, endpoint)
        gateway.open_all()
        await gateway.connect()
        for number in range(EARLY_MESSAGES_MAX + 1):
            gateway.channels["lane-0"].send(OpenConnection(number + 1, "a", 80).encode())
        assert await seen.down() == f"the peer sent over {EARLY_MESSAGES_MAX} messages before HELLO"
        assert seen.messages == []
        assert endpoint.protocol.take_early() == []


# --- messages ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("text", "text-message"),
        (b"", "short-message"),
        (b"\x69", "short-message"),
        (message_header(MessageType.PING, 0) + bytes(7), "malformed-ping"),
        (message_header(MessageType.GOAWAY, 0), "malformed-goaway"),
        (message_header(MessageType.HELLO, 0), "malformed-hello"),
        (hello().encode(), "second-hello"),
        (Resume().encode(), "unexpected-resume"),
        (Data(1, b"x").encode(), "wrong-channel"),
        (UdpPacket(1, b"x").encode(), "wrong-channel"),
        (bytes([MessageType.DATA]) + bytes(65_536), "long-message"),
    ],
)
async def test_errors_on_control_are_counted_and_logged_once(
    message: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with site() as here:
        counted: list[str] = []
        gateway, endpoint, seen = await greeted(here, on_protocol_error=counted.append)
        sctp_of(gateway)._remote_max_message_size = 0  # send what the endpoint does not take
        for _ in range(3):
            gateway.channels["control"].send(message)
        await echo(gateway)
        assert endpoint.state == "up"
        assert counted == [kind] * 3
        assert endpoint.protocol.errors == {kind: 3}
        lines = [line for line in caplog.messages if line.startswith("link endpoint: the peer")]
        assert len(lines) == 1
        assert seen.messages == []


@pytest.mark.parametrize(
    ("label", "message", "kind"),
    [
        ("lane-0", "text", "text-message"),
        ("lane-0", b"\x69\0\0\0\0\0", "short-message"),
        ("lane-0", b"", "short-message"),
        ("lane-1", bytes([MessageType.DATA]) + bytes(65_536), "long-message"),
        ("datagram", Data(1, b"x").encode(), "wrong-channel"),
        ("datagram", b"\xcb", "short-message"),
        ("datagram", "text", "text-message"),
    ],
)
async def test_errors_on_other_channels_are_counted(label: str, message: Any, kind: str) -> None:
    async with site() as here:
        gateway, endpoint, seen = await greeted(here)
        sctp_of(gateway)._remote_max_message_size = 0  # send what the endpoint does not take
        gateway.channels[label].send(message)
        if label == "datagram":  # unordered and unreliable, but not on loopback
            gateway.channels[label].send(UdpPacket(5, b"end").encode())
        else:
            gateway.channels[label].send(Data(5, b"end").encode())
        await seen.until(lambda: len(seen.messages) == 1)
        assert endpoint.protocol.errors == {kind: 1}
        assert endpoint.state == "up"


async def test_unknown_types_are_counted() -> None:
    async with site() as here:
        unknown: list[None] = []
        gateway, endpoint, _ = await greeted(here, on_unknown=lambda: unknown.append(None))
        gateway.channels["control"].send(message_header(99, 0) + b"whatever")
        gateway.channels["control"].send(message_header(0, 0))
        await echo(gateway)
        assert len(unknown) == 2
        assert endpoint.protocol.errors == {}


async def test_goaway_is_handed_on() -> None:
    async with site() as here:
        gateway, _, seen = await greeted(here)
        gateway.channels["control"].send(Goaway(0x12).encode())
        await echo(gateway)
        assert seen.goaways == [0x12]


async def test_a_pong_of_nothing_is_no_round_trip() -> None:
    async with site() as here:
        gateway, endpoint, seen = await greeted(here)
        for opaque in (bytes(8), b"\xff" * 8, struct.pack("!d", float("nan"))):
            gateway.channels["control"].send(Pong(opaque).encode())
        await echo(gateway)
        # bytes(8) is the moment at which the link was made: a long round trip, but one.
        assert len(seen.rtts) <= 1
        assert endpoint.state == "up"


async def test_a_flood_of_pings_is_answered_in_part(caplog: pytest.LogCaptureFixture) -> None:
    async with site() as here:
        gateway, endpoint, seen = await greeted(here)
        for _ in range(300):
            gateway.channels["control"].send(Ping(b"a flood.").encode())
        gateway.channels["control"].send(Goaway(1).encode())
        await seen.until(lambda: seen.goaways == [1])
        assert gateway.on("control").count(Pong(b"a flood.").encode()) < 100
        assert endpoint.protocol.errors["ping-flood"] > 200
        assert caplog.text.count("PINGs a second") == 1
        assert endpoint.state == "up"


async def test_a_flood_of_goaways_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async with site() as here:
        gateway, endpoint, seen = await greeted(here)
        for number in range(300):
            gateway.channels["control"].send(Goaway(number % 256).encode())
        await echo(gateway)
        assert seen.goaways == [0]
        assert endpoint.protocol.errors == {"second-goaway": 299}
        assert caplog.text.count("GOAWAY") == 1


# --- below the messages -----------------------------------------------------------------------


async def open_again(gateway: RawGateway) -> None:
    """DATA_CHANNEL_OPEN on a stream that has a channel: aiortc asserts that there is none."""
    channel = gateway.channels["lane-0"]
    sctp = sctp_of(gateway)
    request = struct.pack("!BBHLHH", 3, 0, 0, 0, 6, 14) + b"lane-5" + b"socks-tunnel/1"
    await sctp._send(channel.id, 50, request)


async def acknowledge_nothing(gateway: RawGateway) -> None:
    """DATA_CHANNEL_ACK on a stream without a channel."""
    await sctp_of(gateway)._send(999, 50, b"\x02")


async def send_bad_text(gateway: RawGateway) -> None:
    """A text message that is no UTF-8."""
    await sctp_of(gateway)._send(gateway.channels["lane-0"].id, 51, b"\xff\xfe\xfd")


async def send_bad_label(gateway: RawGateway) -> None:
    """A channel whose label is no UTF-8."""
    await sctp_of(gateway)._send(999, 50, struct.pack("!BBHLHH", 3, 0, 0, 0, 2, 0) + b"\xff\xfe")


@pytest.mark.parametrize("attack", [open_again, acknowledge_nothing, send_bad_text, send_bad_label])
async def test_what_makes_aiortc_raise_harms_no_one_else(
    attack: Callable[[RawGateway], Coroutine[Any, Any, None]], path: str
) -> None:
    async with site() as here:
        gateway, endpoint, seen = await greeted(here)
        await attack(gateway)
        if path == "fast":  # it drops what cannot be read, and goes on
            await echo(gateway)
            assert endpoint.state == "up"
            return
        assert (await seen.down()).startswith("the peer sent what aiortc cannot take (")
        assert endpoint.protocol.errors["aiortc"] == 1


async def test_garbage_inside_dtls_is_dropped() -> None:
    async with site() as here:
        gateway, endpoint, _ = await greeted(here)
        dtls = sctp_of(gateway).transport
        for garbage in (b"\x00", bytes(12), bytes(40), b"\xff" * 1000):
            await dtls._send_data(garbage)
        await echo(gateway)
        assert endpoint.state == "up"


async def test_an_abort_ends_the_link() -> None:
    async with site() as here:
        gateway, _, seen = await greeted(here)
        await sctp_of(gateway)._abort()
        assert await seen.down() == "the peer closed the connection"


@pure_only("socks_tunnel.peer.plain.transport")
async def test_messages_that_never_end_are_bounded(
    monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    async with site() as here:
        monkeypatch.setattr(transport_module, "REASSEMBLY_MAX", 100_000)
        gateway, endpoint, seen = await greeted(here)
        sctp = sctp_of(gateway)
        lane = gateway.channels["lane-0"]
        # The window is 1 MiB: a fragment without end of a little more than that, and 100,000 bytes.
        with monkeypatch.context() as held:
            held.setattr(sctp, "_transmit", lambda: asyncio.sleep(0))
            await sctp._send(lane.id, 53, bytes(1_300_000))
        sctp._outbound_queue[-1].flags = 0  # not the last fragment after all
        await sctp._transmit()
        reason = await seen.down()
        if path == "fast":
            assert reason.startswith("the peer sends a message of more than")
            assert endpoint.protocol.errors["sctp"] == 1
        else:
            assert reason.startswith("the peer sends far beyond the receive window")
            assert endpoint.protocol.errors["reassembly"] == 1


def strangers() -> list[bytes]:
    """Datagrams that anyone can send to a port: empty, and STUN whose attributes are malformed."""
    magic = struct.pack("!HHI", 0x0001, 8, 0x2112A442) + bytes(12)
    return [
        b"",
        b"\x00",
        b"\x16",
        b"\x80",
        b"\xff" * 2000,
        magic + struct.pack("!HH", 0x0024, 3) + b"\0\0\0\0",  # PRIORITY of three bytes
        magic + struct.pack("!HH", 0x0006, 2) + b"\xff\xfe\0\0",  # USERNAME that is no UTF-8
        magic + struct.pack("!HH", 0x0008, 4) + bytes(4),  # MESSAGE-INTEGRITY cut short
        magic + struct.pack("!HH", 0x8029, 1) + bytes(4),  # ICE-CONTROLLED of one byte
        struct.pack("!HHI", 0x0001, 0, 0x2112A442) + bytes(12),
        struct.pack("!HHI", 0x0111, 0, 0x2112A442) + bytes(12),
    ]


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_strangers_datagrams_do_no_harm(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def check() -> None:
        async with site() as here:
            gateway, _, endpoint, seen = await here.pair()
            for link in (gateway, endpoint):
                path = link.transport.path
                assert path is not None
                port = path.local[1]
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    for datagram in strangers():
                        sock.sendto(datagram, ("127.0.0.1", port))
            for number in range(100):
                gateway.send_many([Data(number, bytes(1000)).encode()])
            await seen.until(lambda: len(seen.messages) == 100)
            assert gateway.state == endpoint.state == "up"

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(check())


@pytest.mark.usefixtures("expects_traceback")
async def test_a_bug_of_the_observer_is_logged_as_one(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socks_tunnel.peer.link._bugs", BugLog())
    async with site() as here:
        gateway, _, seen = await greeted(here)

        def bug(message: bytes) -> None:
            raise LookupError("a bug")

        seen.hook = bug
        gateway.channels["lane-0"].send(Data(1, b"x").encode())
        assert "hit a bug here (LookupError: a bug)" in await seen.down()
        (record,) = [record for record in caplog.records if record.exc_info]
        assert record.levelno == logging.ERROR
        assert record.name.startswith("socks_tunnel.peer")
