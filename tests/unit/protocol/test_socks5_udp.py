"""The header of SOCKS5 UDP packets (RFC 1928 section 7)."""

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.messages import UdpPacket, decode
from socks_tunnel.protocol.socks5 import UdpDatagram, parse_udp_packet, udp_header

LONGEST_NAME = ".".join(["a" * 63] * 4)

GOLDEN = [
    ("IPv4", "0000 00 01 08080808 0035", HostPort("8.8.8.8", 53)),
    ("IPv6", "0000 00 04 20010db8000000000000000000000007 0035", HostPort("2001:db8::7", 53)),
    ("name", "0000 00 03 07 6e732e636f7270 0035", HostPort("ns.corp", 53)),
    (
        "longest name",
        "0000 00 03 ff" + LONGEST_NAME.encode().hex() + "0035",
        HostPort(LONGEST_NAME, 53),
    ),
]


@pytest.mark.parametrize(("name", "wire", "destination"), GOLDEN, ids=[row[0] for row in GOLDEN])
@pytest.mark.parametrize("data", [b"", b"\0", b"query", bytes(65_000)], ids=len)
def test_reads_a_header(name: str, wire: str, destination: HostPort, data: bytes) -> None:
    header = bytes.fromhex(wire)
    packet = header + data

    for view in (packet, bytearray(packet), memoryview(packet)):
        datagram = parse_udp_packet(view)
        assert datagram == UdpDatagram(0, destination, len(header))
        assert bytes(view[datagram.offset :]) == data


@pytest.mark.parametrize(
    ("wire", "source"),
    [
        ("0000 00 01 08080808 0035", HostPort("8.8.8.8", 53)),
        ("0000 00 04 20010db8000000000000000000000007 0035", HostPort("2001:db8::7", 53)),
    ],
)
def test_writes_a_header(wire: str, source: HostPort) -> None:
    assert udp_header(source).hex() == bytes.fromhex(wire).hex()
    assert udp_header(source).hex() == bytes.fromhex(wire).hex()  # from the cache


@pytest.mark.parametrize("frag", [1, 0x7F, 0x80, 0xFF])
def test_tells_a_fragment(frag: int) -> None:
    datagram = parse_udp_packet(bytes((0, 0, frag)) + bytes.fromhex("01 08080808 0035 00"))

    assert datagram.frag == frag
    assert datagram.destination == HostPort("8.8.8.8", 53)


def test_ignores_rsv() -> None:
    assert parse_udp_packet(bytes.fromhex("ffff 00 01 08080808 0035")).frag == 0


@pytest.mark.parametrize(
    ("wire", "destination"),
    [
        ("0000 00 03 09 3139322e302e322e37 0035", HostPort("192.0.2.7", 53)),
        ("0000 00 03 03 3a3a31 0035", HostPort("::1", 53)),
        ("0000 00 03 05 5b3a3a315d 0035", HostPort("::1", 53)),
        ("0000 00 03 05 412e42432e 0035", HostPort("a.bc", 53)),
    ],
    ids=["IPv4 literal", "IPv6 literal", "brackets", "case and dot"],
)
def test_a_name_is_made_canonical(wire: str, destination: HostPort) -> None:
    assert parse_udp_packet(bytes.fromhex(wire)).destination == destination


@pytest.mark.parametrize(
    ("wire", "kind"),
    [
        ("", "udp-header"),
        ("0000 00", "udp-header"),
        ("0000 00 01", "udp-header"),
        ("0000 00 01 08080808 00", "udp-header"),
        ("0000 00 03", "udp-header"),
        ("0000 00 03 05 6162 0035", "udp-header"),
        ("0000 00 04 20010db8 0035", "udp-header"),
        ("0000 00 00 08080808 0035", "address-type"),
        ("0000 00 02 08080808 0035", "address-type"),
        ("0000 00 03 00 0035", "bad-name"),
        ("0000 00 03 01 ff 0035", "bad-name"),
        ("0000 00 03 01 20 0035", "bad-name"),
    ],
)
def test_refuses_a_malformed_header_every_time(wire: str, kind: str) -> None:
    for _ in range(2):  # what cannot be read is not cached either
        with pytest.raises(RemoteProtocolError) as caught:
            parse_udp_packet(bytes.fromhex(wire))
        assert caught.value.kind == kind
        assert kind != "udp-header" or str(caught.value) == "the UDP header is cut short"


@pytest.mark.parametrize("packet", ["", "0000 00 01 0808", "0000 00 02 08080808 0035"])
def test_a_udp_packet_message_with_a_malformed_header_is_refused_where_it_is_read(
    packet: str,
) -> None:
    message = decode(bytes.fromhex("cb 0000 0000abcd" + packet))

    assert isinstance(message, UdpPacket)
    with pytest.raises(RemoteProtocolError):
        parse_udp_packet(message.packet)
