"""The fences around aiortc's transports in a real association: what passes, and what is dropped."""

from typing import Any

from aiortc import RTCConfiguration, RTCPeerConnection
from google_crc32c import value

from socks_tunnel.peer.plain.bounds import MISORDERED_MAX
from socks_tunnel.peer.plain.fences import (
    FencedDtlsTransport,
    FencedSctpTransport,
    plain_connection,
)
from unit.peer.plain.test_bounds import data
from unit.peer.plain.test_bounds import packet as unchecked


def checked(content: bytes, tag: int) -> bytes:
    """The packet with a tag and its checksum."""
    header = content[:4] + tag.to_bytes(4)
    checksum: int = value(header + bytes(4) + content[12:])
    return header + checksum.to_bytes(4, "little") + content[12:]


async def association() -> tuple[RTCPeerConnection, FencedSctpTransport, list[Any]]:
    """An association that has seen the peer's INIT, and what is handed to aiortc."""
    pc = plain_connection(RTCConfiguration(iceServers=[]))
    pc.createDataChannel("x")
    assert isinstance(pc.sctp, FencedSctpTransport)
    sctp: Any = pc.sctp
    assert isinstance(sctp.transport, FencedDtlsTransport)
    sctp._last_received_tsn = 1000
    handled: list[Any] = []

    async def receive(chunk: Any) -> None:
        handled.append(chunk)

    sctp._receive_chunk = receive
    return pc, pc.sctp, handled


async def test_honest_packets_reach_aiortc() -> None:
    pc, sctp, handled = await association()
    await sctp._handle_data(
        checked(unchecked(data(1001), data(1002)), sctp._local_verification_tag)
    )
    assert [chunk.tsn for chunk in handled] == [1001, 1002]
    assert sctp.dropped_packets == 0
    await pc.close()


async def test_packets_for_which_there_is_no_room_are_counted() -> None:
    pc, sctp, handled = await association()
    sctp._sack_misordered = set(range(1002, 1002 + MISORDERED_MAX))
    await sctp._handle_data(checked(unchecked(data(9000)), sctp._local_verification_tag))
    assert handled == []
    assert sctp.dropped_packets == 1
    await pc.close()


async def test_what_rfc_9260_discards_is_discarded() -> None:
    pc, sctp, handled = await association()
    tag = sctp._local_verification_tag
    good = unchecked(data(1001))
    init = bytes.fromhex("01000014") + bytes(16)
    for packet in (
        checked(good, tag ^ 1),  # another tag
        checked(good, tag)[:-1] + b"\xff",  # a wrong checksum
        checked(good[:12] + init + good[12:], 0),  # INIT in company
        b"short",
    ):
        await sctp._handle_data(packet)
    assert handled == []
    await pc.close()
