"""Keys whose enrolment an endpoint has revoked, as it tells a rendezvous service. Sans-IO.

An enrolment is a signed paper without a list behind it, so the service has to be told which of them
are void. An endpoint does so with frames of :mod:`socks_tunnel.protocol.rendezvous`::

    revoked     client   "number": int, "reset": bool,
                         "keys": bin 32*n, "lifted": bin 32*n, "signature": bin 64

With `reset`, `keys` are all that are revoked; otherwise they are added, and those in `lifted` are
good again. The numbers of the frames of one connection rise. The limit `revoked` of the welcome
says how many keys the service remembers for this client; without it, it takes no such frame.

The signature is Ed25519 (RFC 8032) by the endpoint over what :func:`signed_text` returns. The
challenge of the connection is in it, so a frame means nothing on any other connection, and the
number is in it, so it means nothing a second time: whoever can write into an unencrypted WebSocket
can neither revoke, nor take back that a key has been admitted again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgpack

from socks_tunnel.protocol import bounded

REVOKED_MAX: Final = 16_384
"""Revoked keys that a service remembers for one endpoint."""

REVOKED_PER_FRAME: Final = 1024
"""Most keys in one field of a frame."""

_KEY_SIZE: Final = 32
_SIGNATURE_SIZE: Final = 64
_NUMBER_MAX: Final = (1 << 53) - 1


@dataclass(frozen=True, slots=True)
class Revocation:
    """These enrolments by the client are void, and those in `lifted` are good again."""

    number: int
    reset: bool
    keys: tuple[bytes, ...]
    lifted: tuple[bytes, ...] = ()
    signature: bytes = b""


def signed_text(nonce: bytes, host: str, revocation: Revocation) -> bytes:
    """Returns the bytes that the signature of a revocation is over.

    ::

        "socks-tunnel revocation" 0x00 | NONCE 32 | NUMBER 8 | RESET 1 | COUNT OF KEYS 4
        | KEYS 32*n | COUNT OF LIFTED 4 | LIFTED 32*n | HOST (UTF-8, the rest)
    """
    return b"".join(
        (
            b"socks-tunnel revocation\0",
            nonce,
            revocation.number.to_bytes(8, "big"),
            bytes([revocation.reset]),
            len(revocation.keys).to_bytes(4, "big"),
            *revocation.keys,
            len(revocation.lifted).to_bytes(4, "big"),
            *revocation.lifted,
            host.encode(),
        )
    )


def encode_revocation(revocation: Revocation) -> bytes:
    """Returns the frame's bytes."""
    packed: bytes = msgpack.packb(
        {
            "kind": "revoked",
            "number": revocation.number,
            "reset": revocation.reset,
            "keys": b"".join(revocation.keys),
            "lifted": b"".join(revocation.lifted),
            "signature": revocation.signature,
        }
    )
    return packed


def decode_revocation(fields: Mapping[str, Any]) -> Revocation:
    """Returns the revocation in a frame with these fields. Raises :class:`bounded.Malformed`."""
    reset = fields.get("reset")
    if not isinstance(reset, bool):
        raise bounded.unusable(fields, "reset")
    return Revocation(
        number=bounded.integer(fields, "number", 0, _NUMBER_MAX),
        reset=reset,
        keys=_keys(fields, "keys"),
        lifted=_keys(fields, "lifted"),
        signature=bounded.binary(fields, "signature", _SIGNATURE_SIZE),
    )


def _keys(fields: Mapping[str, Any], name: str) -> tuple[bytes, ...]:
    joined = bounded.binary(fields, name)
    if len(joined) % _KEY_SIZE or len(joined) > REVOKED_PER_FRAME * _KEY_SIZE:
        raise bounded.unusable(fields, name)
    return tuple(joined[at : at + _KEY_SIZE] for at in range(0, len(joined), _KEY_SIZE))


class Telling:
    """What one connection has to be told, so that the service knows what is revoked at most."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._told: set[bytes] | None = None
        self._number = 0

    def news(self, revoked: Sequence[bytes]) -> Iterator[Revocation]:
        """Yields what makes the service know that these keys are revoked, and no others.

        Unsigned. If they are more than the service remembers, the last ones count.
        """
        current = set(revoked[-self._most :])
        reset, told = self._told is None, self._told or set()
        added = [key for key in revoked if key in current - told]
        lifted = sorted(told - current)
        self._told = current
        per = REVOKED_PER_FRAME
        for start in range(0, max(len(added), len(lifted), 1 if reset else 0), per):
            self._number += 1
            keys, gone = added[start : start + per], lifted[start : start + per]
            yield Revocation(self._number, reset, tuple(keys), tuple(gone))
            reset = False
