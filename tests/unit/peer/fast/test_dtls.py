"""What of the batched DTLS transport needs no peer: the sizes that it adds, and its refusals.

Batches between two peers, forged records and slow receivers: tests/integration/test_fast_dtls.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest
from aiortc import RTCIceGatherer, RTCIceTransport

from socks_tunnel.peer.fast.dtls import FastDtlsTransport, PinnedCertificate
from socks_tunnel.peer.fast.records import RECORD_OVERHEAD_MAX


def transport() -> FastDtlsTransport:
    ice = RTCIceTransport(RTCIceGatherer(iceServers=[]))
    certificate: Any = PinnedCertificate.generateCertificate()
    return FastDtlsTransport(ice, [certificate])


def path(remote: str, kind: str = "host") -> SimpleNamespace:
    """As much of a candidate pair as is looked at."""
    return SimpleNamespace(remote_addr=(remote, 9), local_candidate=SimpleNamespace(type=kind))


@pytest.mark.parametrize(
    ("remote", "kind", "headers"),
    [
        ("192.0.2.1", "host", 20 + 8),
        ("2001:db8::1", "host", 40 + 8),
        ("192.0.2.1", "relay", 20 + 8 + 4),
    ],
)
async def test_what_a_packet_has_around_it(remote: str, kind: str, headers: int) -> None:
    dtls = transport()
    dtls._ice._nominated[1] = path(remote, kind)
    assert dtls.packet_overhead == headers + RECORD_OVERHEAD_MAX
    suite = SimpleNamespace(
        _ssl=None, _into_ssl=None, _from_ssl=None, get_cipher_name=lambda: "AES128-GCM-SHA256"
    )
    dtls.encrypted = True
    dtls._ssl = suite  # type: ignore[assignment] # as much of a connection as is looked at
    assert dtls.packet_overhead == headers + 37


async def test_before_the_handshake_nothing_is_sent() -> None:
    dtls = transport()
    assert not dtls.fast
    assert not dtls.blocked
    assert dtls.udp is None
    assert dtls.heard_at is None
    for send in (lambda: dtls.send_packets([b"x"]), lambda: dtls.send_probe(b"x")):
        with pytest.raises(ConnectionError):
            send()
    with pytest.raises(ConnectionError):
        await dtls._send_data(b"x")
    assert dtls.counters.sent_records == 0


async def test_datagrams_before_the_handshake_are_aioices() -> None:
    dtls = transport()
    dtls.path.read_datagram(b"\x17" + bytes(50))
    assert dtls.counters.odd_datagrams == 0
    dtls._ice_data_received(b"\x80 is no DTLS", 1)
    assert dtls._ice._queue.get_nowait() == (b"\x80 is no DTLS", 1)
