"""Two links with each other over loopback: what an owner sees of a link's life."""

import asyncio
import logging
import re
from collections.abc import Callable

import pytest
import uvloop

from integration.link_pair import (
    LOOPBACK,
    RawEndpoint,
    Site,
    buffered,
    hello,
    ice_of,
    site,
)
from socks_tunnel.peer import IceSettings, TransportError
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.messages import (
    CloseConnection,
    Data,
    MessageType,
    OpenConnection,
    SendEof,
    UdpPacket,
    message_key,
)

pytestmark = pytest.mark.usefixtures("path")


async def exchange(here: Site, ice: IceSettings = LOOPBACK) -> None:
    """Bring a pair up, send each way, and take it down: the whole of an uneventful life."""
    gateway, at_gateway, endpoint, at_endpoint = await here.pair(ice=ice)
    assert endpoint.protocol.remote_hello == hello()
    assert gateway.protocol.remote_hello == hello()  # with the session that the gateway chose
    assert gateway.transport.path is not None

    there = [Data(7, bytes([number]) * 65_529).encode() for number in range(20)]
    there += [SendEof(7).encode(), OpenConnection(8, "example.com", 443).encode()]
    gateway.send_many(there)
    assert buffered(gateway) == sum(map(len, there))
    back = [Data(7, b"x").encode(), CloseConnection(7, 1).encode()]
    endpoint.send_many(back)
    await at_endpoint.until(lambda: len(at_endpoint.messages) == len(there))
    await at_gateway.until(lambda: len(at_gateway.messages) == len(back))
    of_flow = [message for message in at_endpoint.messages if message_key(message)[1] == 7]
    assert of_flow == there[:-1]
    assert sorted(at_endpoint.messages) == sorted(there)
    assert sorted(at_gateway.messages) == sorted(back)
    await at_gateway.until(lambda: at_gateway.drained == sum(map(len, there)))
    assert buffered(gateway) == 0

    await at_gateway.until(lambda: bool(at_gateway.rtts))
    assert gateway.protocol.keepalive.rtt == at_gateway.rtts[-1]
    assert 0 < at_gateway.rtts[-1] < 60

    gateway.goaway(0x12)
    await gateway.close("enough")
    assert at_gateway.reason == "enough"
    assert await at_endpoint.down() == "the peer closed the connection"
    assert at_endpoint.goaways == [0x12]
    gateway.send_many(back)
    endpoint.send_many(back)
    assert buffered(gateway) == buffered(endpoint) == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_whole_life(
    factory: Callable[[], asyncio.AbstractEventLoop],
    address: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def life() -> None:
        async with site() as here:
            await exchange(here, IceSettings(addresses=[address]))

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(life())
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.INFO] == []


async def test_udp_goes_on_datagram_and_flows_spread_over_lanes() -> None:
    async with site() as here:
        gateway, seen = here.gateway(lanes=4)
        endpoint = RawEndpoint(here, gateway)
        await endpoint.connect()
        endpoint.channels["control"].send(hello().encode())
        assert sorted(endpoint.channels) == [
            "control",
            "datagram",
            *(f"lane-{n}" for n in range(4)),
        ]
        datagram = endpoint.channels["datagram"]
        assert (datagram.ordered, datagram.maxRetransmits) == (False, 0)
        await seen.up()

        ids = range(8, 8 * 200, 8)  # as one of eight workers hands them out
        for conn_id in ids:
            gateway.send_many([Data(conn_id, b"a").encode(), Data(conn_id, b"b").encode()])
        gateway.send_many([UdpPacket(5, b"packet").encode()])
        await endpoint.until(lambda: len(of_flows(endpoint)) == 2 * len(ids) + 1)
        assert endpoint.on("datagram") == [UdpPacket(5, b"packet").encode()]
        per_lane = {label: endpoint.on(label) for label in endpoint.channels if "lane" in label}
        assert all(2 * len(ids) / 8 < len(messages) for messages in per_lane.values())
        for conn_id in ids:
            (lane,) = [
                [message for message in messages if message_key(message)[1] == conn_id]
                for messages in per_lane.values()
                if any(message_key(message)[1] == conn_id for message in messages)
            ]
            assert lane == [Data(conn_id, b"a").encode(), Data(conn_id, b"b").encode()]


def of_flows(endpoint: RawEndpoint) -> list[bytes]:
    """What came of flows: on `control` there are HELLO and, from time to time, PINGs."""
    return [message for label, message in endpoint.got if label != "control"]


async def test_the_sdp_names_what_we_take() -> None:
    async with site() as here:
        gateway, _ = here.gateway()
        offer = await gateway.create_offer()
        assert re.findall("a=max-message-size:(.*)\r", offer) == ["65536"]
        assert re.findall("a=candidate:.* ([0-9.]+) [0-9]+ typ (.*)\r", offer) == [
            ("127.0.0.1", "host")
        ]


async def test_each_connection_has_its_own_addresses() -> None:
    async with site() as here:
        rules = [["127.0.0.1"], ["::1"], ["127.0.0.2", "::1"], ["lo"]]
        links = [here.gateway(ice=IceSettings(addresses=addresses))[0] for addresses in rules]
        offers = await asyncio.gather(*(link.create_offer() for link in links))
        found = [
            sorted(set(re.findall("a=candidate:.* udp [0-9]+ ([0-9a-f.:]+) ", sdp)))
            for sdp in offers
        ]
        assert found[:3] == [["127.0.0.1"], ["::1"], ["127.0.0.2", "::1"]]
        assert "127.0.0.1" in found[3]


async def test_nobody_is_asked_for_candidates_by_default() -> None:
    async with site() as here:
        gateway, _ = here.gateway()
        await gateway.create_offer()
        ice = ice_of(gateway)
        assert ice.stun_server is None
        assert ice.turn_server is None


async def test_without_an_address_there_is_no_offer() -> None:
    async with site() as here:
        gateway, seen = here.gateway(ice=IceSettings(addresses=["203.0.113.7", "nosuch0"]))
        with pytest.raises(
            TransportError, match=r"ice\.addresses allows \(203\.0\.113\.7, nosuch0\)"
        ):
            await gateway.create_offer()
        assert "no local address" in await seen.down()


async def test_what_aiortc_cannot_offer_ends_the_link(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: object) -> None:
        raise OSError("no sockets left")

    monkeypatch.setattr("aiortc.RTCPeerConnection.createOffer", fail)
    async with site() as here:
        gateway, seen = here.gateway()
        with pytest.raises(TransportError, match="no offer can be made"):
            await gateway.create_offer()
        assert "no sockets left" in await seen.down()


@pytest.mark.parametrize("lanes", [0, 65])
async def test_the_number_of_lanes_is_bounded(lanes: int) -> None:
    async with site() as here:
        with pytest.raises(LocalProtocolError, match="1 to 64 lanes"):
            here.gateway(lanes=lanes)


async def test_as_many_lanes_as_allowed_work() -> None:
    async with site() as here:
        gateway, _, _, seen = await here.pair(lanes=64)
        for number in range(64):
            gateway.send_many([Data(number, b"x").encode()])
        await seen.until(lambda: len(seen.messages) == 64)


async def test_bad_ice_servers_are_refused_at_once() -> None:
    async with site() as here:
        with pytest.raises(ValueError, match="cannot be used"):
            here.gateway(ice=IceSettings(servers=[{"urls": "http://example.net"}]))


# --- messages ---------------------------------------------------------------------------------


async def test_what_is_no_flow_message_is_our_bug() -> None:
    async with site() as here:
        gateway, _, _, at_endpoint = await here.pair()
        for message in (b"", b"\x69", hello().encode(), bytes([MessageType.PING]) + bytes(14)):
            with pytest.raises(LocalProtocolError):
                gateway.send_many([Data(1, b"not sent").encode(), message])
        with pytest.raises(LocalProtocolError, match="over the peer's limit"):
            gateway.send_many([Data(1, b"not sent").encode(), Data(1, bytes(65_530)).encode()])
        assert gateway.state == "up"
        gateway.send_many([])
        gateway.send_many([Data(1, b"sent").encode()])
        await at_endpoint.until(lambda: bool(at_endpoint.messages))
        assert at_endpoint.messages == [Data(1, b"sent").encode()]


async def test_a_smaller_limit_of_the_peer_is_respected() -> None:
    async with site() as here:
        gateway, seen = here.gateway()
        endpoint = RawEndpoint(here, gateway)
        await endpoint.connect(lambda sdp: re.sub("size:[0-9]+", "size:2000", sdp))
        endpoint.channels["control"].send(hello().encode())
        await seen.up()
        assert gateway.max_message == 2000
        with pytest.raises(LocalProtocolError, match="limit of 2000"):
            gateway.send_many([Data(1, bytes(1994)).encode()])
        longest = [Data(1, bytes(1993)).encode(), UdpPacket(1, bytes(1993)).encode()]
        too_long = UdpPacket(1, bytes(1994)).encode()
        gateway.send_many([*longest, too_long])
        await seen.until(lambda: seen.drained == sum(map(len, longest)) + len(too_long))
        await endpoint.until(lambda: len(of_flows(endpoint)) == len(longest))
        assert endpoint.on("datagram") == longest[1:]
        assert gateway.transport.stats.datagrams_dropped == 1


@pytest.mark.parametrize("size", ["0", "262144"])
def test_a_larger_limit_of_the_peer_changes_nothing(size: str) -> None:
    async def check() -> None:
        async with site() as here:
            gateway, seen = here.gateway()
            endpoint = RawEndpoint(here, gateway)
            await endpoint.connect(lambda sdp: re.sub("size:[0-9]+", f"size:{size}", sdp))
            endpoint.channels["control"].send(hello().encode())
            await seen.up()
            assert gateway.max_message == 65_536

    asyncio.run(check())


async def test_sending_before_the_link_is_up_sends_nothing() -> None:
    async with site() as here:
        gateway, _ = here.gateway()
        gateway.send_many([Data(1, b"x").encode()])
        await gateway.create_offer()
        gateway.send_many([Data(1, b"x").encode()])
        gateway.goaway(0x12)
        assert buffered(gateway) == 0
