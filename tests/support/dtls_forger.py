"""Makes DTLS 1.2 records of any type and contents, as a hostile peer does who has the keys."""

import hmac
import struct

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from OpenSSL import SSL

ALERT = 21
HANDSHAKE = 22
APPLICATION_DATA = 23

HELLO_REQUEST = bytes(12)
"""The handshake message by which a server asks for another handshake (RFC 5246 section 7.4.1.1)."""

CLIENT_HELLO_FRAGMENT = b"\x01\x00\xff\xff\x00\x00\x00\x00\x00\x00\x00\x04" + bytes(4)
"""The first 4 bytes of a ClientHello of 65,535 bytes (RFC 6347 section 4.2.2)."""

FATAL_ALERT = b"\x02\x28"
"""The alert handshake_failure (RFC 5246 section 7.2)."""

FATAL_ALERT_IN_THE_CLEAR = b"\x15\xfe\xfd" + bytes(8) + b"\x00\x02" + FATAL_ALERT
"""A record of epoch 0 that anybody can make."""


def _prf(secret: bytes, seed: bytes, size: int, digest: str) -> bytes:
    """Returns the key block of RFC 5246 section 5."""
    seed = b"key expansion" + seed
    output, link = b"", seed
    while len(output) < size:
        link = hmac.digest(secret, link, digest)
        output += hmac.digest(secret, link + seed, digest)
    return output[:size]


class Forger:
    """Makes records as one end of an association does. `connection` is either end's."""

    def __init__(self, connection: SSL.Connection, *, server: bool) -> None:
        name = connection.get_cipher_name() or ""
        assert "GCM" in name, f"{name} is not forged here"
        size = 32 if "256-GCM" in name else 16
        secret = connection.master_key()
        server_random, client_random = connection.server_random(), connection.client_random()
        assert secret is not None, "the handshake is over"
        assert server_random is not None
        assert client_random is not None
        randoms = server_random + client_random
        digest = "sha384" if name.endswith("SHA384") else "sha256"
        block = _prf(secret, randoms, 2 * size + 8, digest)
        keys, salts = block[: 2 * size], block[2 * size :]
        self._aead = AESGCM(keys[size:] if server else keys[:size])
        self._salt = salts[4:] if server else salts[:4]
        self._number = 1 << 20  # beyond what the association has used

    def record(self, kind: int, contents: bytes) -> bytes:
        """Returns a record of epoch 1 (RFC 5288 section 3)."""
        self._number += 1
        number = (1 << 48 | self._number).to_bytes(8)
        head = bytes([kind]) + b"\xfe\xfd"
        sealed = self._aead.encrypt(
            self._salt + number, contents, number + head + struct.pack("!H", len(contents))
        )
        return head + number + struct.pack("!H", 8 + len(sealed)) + number + sealed
