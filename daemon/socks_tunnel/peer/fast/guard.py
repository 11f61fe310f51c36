"""Whether the fast path may be used: what it relies on in other people's code is as it was read.

The fast path replaces private methods of aiortc and calls OpenSSL through pyOpenSSL's binding. The
release lines that pyproject.toml allows may change any of it. So at import, each function that is
replaced, and each whose inside is relied on, is compared with the source that was read when this
was written, and a batch of DTLS records makes a round trip. Upon any difference
:data:`MISMATCH` says what it is, and the process runs on unmodified aiortc.

When a new release of aiortc has been read and is right, `python -m socks_tunnel.peer.fast.guard`
prints the table anew.
"""

import contextlib
import hashlib
import logging
import operator
import sys
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import aioice.ice
import aiortc.rtcdatachannel
import aiortc.rtcdtlstransport
import aiortc.rtcicetransport
import aiortc.rtcpeerconnection
import aiortc.rtcsctptransport
import OpenSSL._util
import OpenSSL.SSL
from OpenSSL import SSL

from socks_tunnel.peer.fast.dtls import PinnedCertificate
from socks_tunnel.peer.fast.records import DTLS_1_2, Records, count_single_records
from socks_tunnel.peer.fast.source import Lines, lines_of, source_of

_log = logging.getLogger(__name__)

_ROOTS: Final[dict[str, Any]] = {
    "datachannel": aiortc.rtcdatachannel,
    "dtls": aiortc.rtcdtlstransport,
    "ice": aioice.ice,
    "icetransport": aiortc.rtcicetransport,
    "peerconnection": aiortc.rtcpeerconnection,
    "sctp": aiortc.rtcsctptransport,
    "ssl": OpenSSL.SSL,
    "util": OpenSSL._util,  # noqa: SLF001 - it is what is guarded
}

SOURCES: Final[dict[str, str]] = {
    "peerconnection.RTCPeerConnection.__init__": "f5388aea637f0f21",
    "peerconnection.RTCPeerConnection._RTCPeerConnection__connect": "9199a73a7cde4776",
    "peerconnection.RTCPeerConnection._RTCPeerConnection__createDtlsTransport": "ad91de689a334df2",
    "peerconnection.RTCPeerConnection._RTCPeerConnection__createSctpTransport": "f1155cfa69ec6e34",
    "peerconnection.RTCPeerConnection.close": "7e2df1bb95ebce29",
    "peerconnection.RTCPeerConnection.getStats": "d529f24bfde27abc",
    "dtls.State": "f6daeff23ec48e5f",
    "dtls.RTCCertificate._create_ssl_context": "aac625bdc264f0a6",
    "dtls.RTCDtlsTransport.__init__": "3bffce6c2b56b5dc",
    "dtls.RTCDtlsTransport._do_handshake": "0af5299c33352e6e",
    "dtls.RTCDtlsTransport.start": "3b3522667fe0a3da",
    "dtls.RTCDtlsTransport.stop": "44a8b3fc40aa9d7b",
    "dtls.RTCDtlsTransport._RTCDtlsTransport__run": "24d63d929a104e16",
    "dtls.RTCDtlsTransport._get_stats": "b27ca634bd468bc6",
    "dtls.RTCDtlsTransport._recv_next": "998076720c05aa13",
    "dtls.RTCDtlsTransport._register_data_receiver": "e00c9865da80d59e",
    "dtls.RTCDtlsTransport._send_data": "ee6cd411dd7f8eda",
    "dtls.RTCDtlsTransport._set_state": "385f5542ac247175",
    "dtls.RTCDtlsTransport._unregister_data_receiver": "330b39a03fa5d27f",
    "dtls.RTCDtlsTransport._validate_peer_identity": "42d1615c4f9fe16b",
    "dtls.RTCDtlsTransport._write_ssl": "6573c0237063bdf0",
    "icetransport.RTCIceGatherer.__init__": "a0d775c349927f2b",
    "icetransport.RTCIceTransport.__init__": "b11403aba1c3a32b",
    "ice.CandidatePair": "774b28dfe5e6b51d",
    "ice.Connection.__init__": "a99ae9c97fc66a2e",
    "ice.Connection.check_complete": "52f939709eabc0ab",
    "ice.Connection.close": "25dcfac536f5f37c",
    "ice.Connection.data_received": "5631b17fab717d6b",
    "ice.Connection.protocol_lost": "447ed44956b65806",
    "ice.Connection.recvfrom": "676acc01e4a9a9da",
    "ice.Connection.sendto": "bf162ec03bdce2cc",
    "ice.StunProtocol.__init__": "9d0df3c0c0c4f915",
    "ice.StunProtocol.close": "8153fbee5bf2f6ff",
    "ice.StunProtocol.connection_lost": "6d64b0e6f5b69f1f",
    "ice.StunProtocol.connection_made": "dfdd2f61ea4b54d9",
    "ice.StunProtocol.error_received": "0349a6d929f86138",
    "ice.StunProtocol.send_data": "8bfbce074a897482",
    "ice.StunProtocol.send_stun": "51a4d50a9080939d",
    "sctp.InboundStream": "b63993b481ece97b",
    "sctp.RTCSctpTransport": "ed2025a7383094d6",
    "datachannel.RTCDataChannel": "c8175e8c6235560e",
    "ssl.Connection.__init__": "3161e88318ab2413",
    "ssl.Connection.DTLSv1_get_timeout": "035aebd267909b92",
    "ssl.Connection.bio_read": "bc83763ed40fc664",
    "ssl.Connection.bio_write": "2198d63b78ada6dc",
    "ssl.Connection.get_cipher_name": "f8e8b6c2d3abff5b",
    "ssl.Connection.get_protocol_version": "b6d320eb98b25d68",
}
"""The beginning of the SHA-256 of the source, with its signature, of each function and class."""

_FENCED: Final = (
    "peerconnection.RTCPeerConnection._RTCPeerConnection__createDtlsTransport",
    "peerconnection.RTCPeerConnection._RTCPeerConnection__createSctpTransport",
    "dtls.RTCCertificate._create_ssl_context",
    "dtls.RTCDtlsTransport._recv_next",
    "dtls.RTCDtlsTransport._send_data",
    "dtls.RTCDtlsTransport._validate_peer_identity",
    "sctp.RTCSctpTransport",
)
"""What the fences rely on, of :data:`SOURCES`."""

_BINDING: Final[dict[str, str]] = {
    "SSL_read": "int(*)(SSL *, void *, int)",
    "SSL_write": "int(*)(SSL *, void *, int)",
    "SSL_get_error": "int(*)(SSL *, int)",
    "BIO_read": "int(*)(BIO *, void *, int)",
    "BIO_write": "int(*)(BIO *, void *, int)",
    "ERR_clear_error": "void(*)()",
}
"""C functions of pyOpenSSL's binding, and their types."""


def fingerprint(name: str, lines: Lines = lines_of) -> str:
    """Returns the hash of the source that `name` stands for, as in :data:`SOURCES`.

    Raises :class:`AttributeError` if it is not there, :class:`OSError` if it has no source.
    """
    root, _, path = name.partition(".")
    found = operator.attrgetter(path)(_ROOTS[root])
    return hashlib.sha256(source_of(found, lines).encode()).hexdigest()[:16]


def differences(names: Iterable[str] = SOURCES) -> list[str]:
    """Returns a sentence for each function of `names` that is not as it was read."""
    wrong = []
    lines = lru_cache(lines_of)  # for this once
    for name in names:
        root, _, path = name.partition(".")
        label = f"{_ROOTS[root].__name__}.{path}"
        try:
            found = fingerprint(name, lines)
        except (AttributeError, OSError, TypeError):
            wrong.append(f"{label} is not there")
            continue
        if found != SOURCES[name]:
            wrong.append(f"{label} has changed")
    return wrong


def binding_differences() -> list[str]:
    """Returns a sentence for each C function that pyOpenSSL does not have as it was read."""
    wrong = []
    ffi, lib = OpenSSL._util.ffi, OpenSSL._util.lib  # noqa: SLF001
    for name, expected in _BINDING.items():
        try:
            found = ffi.getctype(ffi.typeof(getattr(lib, name)))
        except (AttributeError, TypeError):
            found = "missing"
        if found != expected:
            wrong.append(f"OpenSSL's {name} is {found} in pyOpenSSL's binding")
    return wrong


def _handshake() -> tuple[SSL.Connection, SSL.Connection]:
    """Returns two ends of a DTLS association that were connected in memory."""
    certificate = PinnedCertificate.generateCertificate()
    profiles = aiortc.rtcdtlstransport.SRTP_PROFILES
    ends = [
        SSL.Connection(certificate._create_ssl_context(profiles))  # noqa: SLF001
        for _ in range(2)
    ]
    ends[0].set_connect_state()
    ends[1].set_accept_state()
    done = [False, False]
    for _ in range(10):  # DTLS 1.2 takes three rounds
        for which, end in enumerate(ends):
            with contextlib.suppress(SSL.WantReadError):
                end.do_handshake()
                done[which] = True
            with contextlib.suppress(SSL.WantReadError):  # it has nothing to say
                ends[1 - which].bio_write(end.bio_read(65_536))
        if all(done):
            return ends[0], ends[1]
    raise SSL.Error("the handshake does not end")


def self_test() -> str | None:
    """Sends one batch of records through OpenSSL; returns what is wrong, or None."""
    try:
        client, server = _handshake()
        if client.get_protocol_version() != DTLS_1_2:
            return f"DTLS 1.2 is not negotiated but {client.get_protocol_version_name()}"
        packets = [bytes([number]) * 1200 for number in range(30)]
        sender, taker = Records(client), Records(server)
        joined = bytearray(sender.write(packets))
        segment = len(joined) // len(packets)
        if segment != 1200 + sender.overhead:
            return f"a record of 1200 bytes has {segment} bytes"
        if count_single_records(joined, len(joined), segment) != len(packets):
            return "joined records are not what RFC 6347 says"
        joined[5 * segment + 20] ^= 1
        got: list[bytes] = []
        taker.read_joined(joined, len(joined), segment, got)
    except (SSL.Error, OSError, AttributeError, TypeError) as error:
        return f"a batch of DTLS records fails ({error!r})"
    if got != packets[:5] + packets[6:]:
        return "a forged record costs more than itself"
    return None


def _find_mismatch() -> str | None:
    wrong = differences() + binding_differences()
    if wrong:
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        return wrong[0] + more
    return self_test()


MISMATCH: Final[str | None] = _find_mismatch()
"""Why the fast path cannot be used in this process, or None."""

FENCES_FIT: Final[bool] = MISMATCH is None or not differences(_FENCED)
"""Whether :mod:`socks_tunnel.peer.plain.fences` can be put around unmodified aiortc."""

if MISMATCH is not None:
    _log.warning("the fast path is off, links run on unmodified aiortc: %s", MISMATCH)


if __name__ == "__main__":
    for each in SOURCES:
        sys.stdout.write(f'    "{each}": "{fingerprint(each)}",\n')
