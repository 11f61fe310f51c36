"""Which SACKs are stamped, and what their stamps tell."""

import struct

import pytest
from google_crc32c import value as crc32c

from socks_tunnel.peer.fast.datapath import STAMPED_BYTES
from socks_tunnel.peer.fast.streams import NORMAL, Message, OutboundStream
from socks_tunnel.peer.fast.wire import SACK, STAMP, STAMP_HEADER
from unit.peer.fast.test_datapath import FIRST_TSN, INBOUND, OURS, chunk, data, packet, path


@pytest.mark.parametrize("stamps", [False, True])
@pytest.mark.parametrize("size", [STAMPED_BYTES - 1, STAMPED_BYTES])
def test_the_sack_of_bulk_is_stamped_for_whoever_understands_it(stamps: bool, size: int) -> None:
    victim = path(stamps=stamps)
    for turn in range(2):  # what was acknowledged once counts no more
        victim.receive([packet(data(FIRST_TSN + turn, bytes(size)))], 2.0 + turn)
        sack = victim.flush(2.0 + turn, due=True, blocked=False)[0][12:]
        stamped = stamps and size >= STAMPED_BYTES
        assert sack[0] == (STAMP if stamped else SACK)
        assert sack[STAMP_HEADER if stamped else 0] == SACK
        assert len(sack) == 16 + stamped * STAMP_HEADER


def test_stamps_tell_the_wait_on_the_way_back_and_not_the_time_of_the_host() -> None:
    sending, receiving = path(stamps=True), path(stamps=True)
    receiving.receiver.start(OURS)
    stream = OutboundStream(1, NORMAL)
    now = 5.0
    for turn, wait in enumerate([0.0, 0.050]):
        sending.sender.rate = 100_000.0
        sending.sender.scheduler.push(Message(stream, 53, bytes(1_200)))
        for one in sending.flush(now, due=False, blocked=False):
            body = one[12:]
            arrived = INBOUND + struct.pack("<L", crc32c(INBOUND + bytes(4) + body)) + body
            receiving.receive([arrived], now + 900.020)
        (answer,) = receiving.flush(now + 900.020, due=True, blocked=False)
        assert answer[12] == STAMP
        body = answer[12:]
        arrived = INBOUND + struct.pack("<L", crc32c(INBOUND + bytes(4) + body)) + body
        sending.receive([arrived], now + 0.040 + wait)
        sending.flush(now + 0.040 + wait, due=False, blocked=False)
        assert sending.sender.credit == pytest.approx(wait * 100_000 * turn, rel=0.2)
        now += 1.0


@pytest.mark.parametrize("length", [4, 12])
def test_a_stamp_of_another_length_is_ignored(length: int) -> None:
    victim = path(stamps=True)
    victim.receive([packet(chunk(STAMP, bytes(length - 4)))], 2.0)
    assert not victim.sender.way_back.known
