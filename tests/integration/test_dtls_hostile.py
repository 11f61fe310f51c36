"""Attacks on DTLS: by strangers who know a port, and by a peer who has the keys."""

import asyncio
import hashlib
from typing import Any

import pytest
from aiortc import RTCDtlsFingerprint
from aiortc.rtcdtlstransport import SRTPProtectionProfile
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import SSL, crypto

from integration.fast_pair import Kind, Peer, introduce, pair, receiver_task
from integration.test_fast_dtls import collect
from socks_tunnel.peer.aiortc_private import dtls_failure
from socks_tunnel.peer.ice.protocol import PathProtocol
from socks_tunnel.peer.layered import Sha256Certificate
from socks_tunnel.protocol.errors import RemoteProtocolError
from support.dtls_forger import (
    ALERT,
    APPLICATION_DATA,
    CLIENT_HELLO_FRAGMENT,
    FATAL_ALERT,
    FATAL_ALERT_IN_THE_CLEAR,
    HANDSHAKE,
    Forger,
)

STRANGER = ("192.0.2.66", 5000)


class UnreadableCertificate(Sha256Certificate):
    """A certificate of version 10: OpenSSL takes it, and cryptography raises an error."""

    @property
    def _der(self) -> bytes:
        return self._cert.public_bytes(Encoding.DER).replace(
            bytes.fromhex("a003020102"), bytes.fromhex("a003020109"), 1
        )

    def getFingerprints(self) -> list[RTCDtlsFingerprint]:
        return [RTCDtlsFingerprint("sha-256", hashlib.sha256(self._der).digest().hex(":").upper())]

    def _create_ssl_context(self, srtp_profiles: list[SRTPProtectionProfile]) -> SSL.Context:
        context = super()._create_ssl_context(srtp_profiles)
        with pytest.warns(DeprecationWarning, match="X509"):  # the new way would parse it
            context.use_certificate(crypto.load_certificate(crypto.FILETYPE_ASN1, self._der))
        return context


@pytest.mark.parametrize("kind", ["fast", "fenced"])
async def test_a_certificate_that_cannot_be_read_ends_the_handshake(kind: Kind) -> None:
    attacker, victim = Peer("plain"), Peer(kind)
    certificates = [UnreadableCertificate.generateCertificate()]
    vars(attacker.pc)["_RTCPeerConnection__certificates"] = certificates
    introducing = asyncio.ensure_future(introduce(attacker, victim))
    try:
        await victim.until(lambda: victim.pc.connectionState == "failed")
        assert "certificate cannot be read (InvalidVersion)" in dtls_failure(victim.pc, [])
    finally:
        introducing.cancel()
        await asyncio.wait([introducing])
        await attacker.pc.close()
        await victim.pc.close()


@pytest.mark.parametrize("kind", ["fast", "fenced"])
async def test_a_forged_alert_of_a_stranger_does_not_end_the_handshake(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is encrypted before the handshake's end, so only the address tells whose it is."""
    took = PathProtocol.datagram_received
    attacked: set[PathProtocol] = set()

    def beside(protocol: PathProtocol, data: Any, addr: tuple[Any, ...]) -> None:
        if data[:1] == bytes([HANDSHAKE]):
            took(protocol, FATAL_ALERT_IN_THE_CLEAR, STRANGER)
            attacked.add(protocol)
        took(protocol, data, addr)

    monkeypatch.setattr(PathProtocol, "datagram_received", beside)
    async with pair(kind, kind) as (left, right):
        left.open().send(b"through")
        assert await right.messages(1) == [b"through"]
        assert len(attacked) == 2
        for peer in (left, right):
            assert peer.pc.sctp is not None
            ice: Any = peer.pc.sctp.transport.transport._connection
            assert ice.drops()["foreign-source"] >= 1


async def test_a_handshake_that_is_begun_in_the_midst_ends_the_link() -> None:
    async with pair("fast-dtls", "fast-dtls") as (sender, taker):
        task = receiver_task(taker)
        collect(taker.dtls)
        assert sender.dtls._ssl is not None
        forger = Forger(sender.dtls._ssl, server=sender.dtls._role == "server")
        record = bytearray(forger.record(HANDSHAKE, CLIENT_HELLO_FRAGMENT))
        taker.dtls.path.datagrams_received(record, len(record), len(record), STRANGER, None)
        with pytest.raises(ConnectionError):
            taker.dtls.send_packets([b"what is sent next finds out"])
        with pytest.raises(RemoteProtocolError, match="ended the DTLS association") as ended:
            await asyncio.wait_for(asyncio.shield(task), 60)
        assert ended.value.kind == "dtls"


@pytest.mark.parametrize(
    ("kind", "contents"), [(HANDSHAKE, CLIENT_HELLO_FRAGMENT), (ALERT, FATAL_ALERT)]
)
async def test_without_the_fast_path_the_link_ends_too(kind: int, contents: bytes) -> None:
    """Its SCTP must be able to close, although nothing can be sent any more."""
    async with pair("fast-dtls", "fenced") as (sender, taker):
        task = receiver_task(taker)
        assert sender.dtls._ssl is not None
        assert sender.dtls.udp is not None
        forger = Forger(sender.dtls._ssl, server=sender.dtls._role == "server")
        sender.dtls.udp.sendto(forger.record(kind, contents), sender.dtls.path.address)
        async with asyncio.timeout(60):
            while not task.done():
                taker.open().send(b"what is sent next finds out")
                await asyncio.sleep(0.01)
        with pytest.raises(RemoteProtocolError, match="ended the DTLS association"):
            task.result()


async def test_several_records_in_one_datagram_reach_aiortc_at_once() -> None:
    """Those that stayed in OpenSSL would pile up without bound."""
    async with pair("fast-dtls", "fenced") as (sender, taker):
        sctp: Any = taker.pc.sctp
        arrived: list[bytes] = []
        all_there = asyncio.Event()

        async def handle(data: bytes) -> None:
            if data.startswith(b"number"):
                arrived.append(data)
            if len(arrived) == 300:
                all_there.set()

        sctp._handle_data = handle
        assert sender.dtls._ssl is not None
        assert sender.dtls.udp is not None
        forger = Forger(sender.dtls._ssl, server=sender.dtls._role == "server")
        contents = [b"number %d" % number for number in range(300)]
        datagram = b"".join(forger.record(APPLICATION_DATA, each) for each in contents)
        sender.dtls.udp.sendto(datagram, sender.dtls.path.address)
        async with asyncio.timeout(60):
            await all_there.wait()
        assert arrived == contents
