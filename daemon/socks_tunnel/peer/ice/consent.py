"""Checks of consent (RFC 7675) on an established path, read and written as bytes. No I/O, no clock.

Each side of each link asks the other every five seconds while the link lives. The requests of one
agent differ only in three fields, so the parts that were built or read once serve for all later
ones::

    +----------------+----------------+--------------------------------+
    | type           | length         | magic cookie                   |   RFC 8489 section 5
    +----------------+----------------+--------------------------------+
    | transaction ID, 12 bytes: another one each time                  |
    +------------------------------------------------------------------+
    | attributes: the same each time                                   |
    +----------------+----------------+--------------------------------+
    | 0x0008         | 20             | HMAC-SHA1 of all before        |   RFC 8489 section 14.5
    +----------------+----------------+--------------------------------+
    | 0x8028         | 4              | CRC-32 of all before           |   RFC 8489 section 14.7
    +----------------+----------------+--------------------------------+

MESSAGE-INTEGRITY is computed with the length that the message has without FINGERPRINT.
"""

import hmac
import random
import struct
import zlib
from ipaddress import ip_address
from typing import Final

REQUEST: Final = b"\x00\x01"
ANSWER: Final = b"\x01\x01"
"""Types of a Binding request and of its success response (RFC 8489 section 5)."""

CONSENT_INTERVAL: Final = 5.0
"""Seconds between two checks; each is drawn from 0.8 to 1.2 of it (RFC 7675 section 5.1)."""

REMEMBERED_MAX: Final = 512
"""Longest request of a peer in bytes that is remembered. A longer one is parsed each time."""

COOKIE: Final = 0x2112A442
FINGERPRINT_XOR: Final = 0x5354554E

_HEADER: Final = struct.Struct("!2sHL12s")
_FINGERPRINT: Final = struct.Struct("!HHL")
_INTEGRITY_HEAD: Final = b"\x00\x08\x00\x14"
_FINGERPRINT_HEAD: Final = b"\x80\x28\x00\x04"
_XOR_MAPPED: Final = struct.Struct("!HHBBH")
_HEADER_SIZE: Final = 20
_SEAL_SIZE: Final = 24 + 8

Address = tuple[str, int]


def next_check() -> float:
    """Returns the seconds until the next check."""
    return CONSENT_INTERVAL * random.uniform(0.8, 1.2)  # noqa: S311 - nobody gains by guessing it


def attributes_of(message: bytes) -> bytes:
    """Returns the bytes between the header and MESSAGE-INTEGRITY of a sealed message."""
    return message[_HEADER_SIZE:-_SEAL_SIZE]


def transaction_of(message: bytes) -> bytes:
    """Returns the transaction ID."""
    return message[8:_HEADER_SIZE]


def seal(kind: bytes, transaction: bytes, attributes: bytes, key: bytes) -> bytes:
    """Returns a message that ends with MESSAGE-INTEGRITY and FINGERPRINT."""
    length = len(attributes)
    signed = _HEADER.pack(kind, length + 24, COOKIE, transaction) + attributes
    message = (
        _HEADER.pack(kind, length + _SEAL_SIZE, COOKIE, transaction)
        + attributes
        + _INTEGRITY_HEAD
        + hmac.digest(key, signed, "sha1")
    )
    return message + _FINGERPRINT.pack(0x8028, 4, zlib.crc32(message) ^ FINGERPRINT_XOR)


def is_sealed(message: bytes, key: bytes) -> bool:
    """Returns whether a message ends with both attributes, and both are valid."""
    size = len(message)
    if (
        size < _HEADER_SIZE + _SEAL_SIZE
        or message[-32:-28] != _INTEGRITY_HEAD
        or message[-8:-4] != _FINGERPRINT_HEAD
        or int.from_bytes(message[2:4]) != size - _HEADER_SIZE
        or zlib.crc32(message[:-8]) ^ FINGERPRINT_XOR != int.from_bytes(message[-4:])
    ):
        return False
    signed = message[:2] + (size - _HEADER_SIZE - 8).to_bytes(2) + message[4:-32]
    return hmac.compare_digest(hmac.digest(key, signed, "sha1"), message[-28:-8])


def mapped_address(address: Address, transaction: bytes) -> bytes:
    """Returns an XOR-MAPPED-ADDRESS attribute (RFC 8489 section 14.2)."""
    host = ip_address(address[0])
    mask = COOKIE.to_bytes(4) + (transaction if host.version == 6 else b"")
    masked = int.from_bytes(host.packed) ^ int.from_bytes(mask)
    size = len(host.packed)
    family = 2 if host.version == 6 else 1
    head = _XOR_MAPPED.pack(0x0020, 4 + size, 0, family, address[1] ^ (COOKIE >> 16))
    return head + masked.to_bytes(size)


class Answers:
    """Answers checks of a peer that equal one that ICE has accepted.

    `key` is our password, which signs the peer's requests and our answers.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._attributes: bytes | None = None
        self._address: Address = ("", 0)
        self._mapped = b""

    def learn(self, request: bytes, address: Address) -> None:
        """Remembers a request from `address` that ICE has just accepted."""
        self.forget()
        if _HEADER_SIZE + _SEAL_SIZE < len(request) <= REMEMBERED_MAX and is_sealed(
            request, self._key
        ):
            self._attributes = attributes_of(request)
            self._address = address
            # For an IPv6 address, the attribute depends on the transaction.
            self._mapped = b"" if ":" in address[0] else mapped_address(address, b"")

    def forget(self) -> None:
        """Forgets the request, because ICE may treat it differently from now on."""
        self._attributes = None

    def answer(self, request: bytes, address: Address) -> bytes | None:
        """Returns the answer; None if ICE has to handle the request."""
        if (
            self._attributes is None
            or address != self._address
            or request[:2] != REQUEST
            or attributes_of(request) != self._attributes
            or not is_sealed(request, self._key)
        ):
            return None
        transaction = transaction_of(request)
        mapped = self._mapped or mapped_address(address, transaction)
        return seal(ANSWER, transaction, mapped, self._key)
