"""Checks the peer's SDP before aiortc parses it. Sans-IO.

aiortc's parser raises arbitrary exceptions (AssertionError, KeyError) for unexpected SDP, accepts
media sections, and resolves names in candidates. SDP that passes this check has one data channel
section (RFC 8841), a DTLS fingerprint, and only addresses as candidates.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.messages import MESSAGE_MAX

SDP_MAX: Final = 32_768
"""Longest SDP in characters."""

CANDIDATES_MAX: Final = 64
"""Most candidates in one SDP, because each is paired with each local one."""

MESSAGE_MIN: Final = 1_024
"""Smallest usable max-message-size of a peer in bytes, because HELLO must fit."""

DIGEST_SIZES: Final = {"sha-256": 32, "sha-384": 48, "sha-512": 64}
"""Accepted hash functions of a fingerprint (RFC 8122), with their length in bytes."""

_ICE_CHARS = re.compile(r"[A-Za-z0-9+/]{4,256}")
_HEX_PAIRS = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2})*")


@dataclass(frozen=True, slots=True)
class SdpFacts:
    """The needed facts from the peer's SDP.

    `fingerprints`: (hash, value) pairs, hash in lower case. `max_message_size` in bytes, at most
    :data:`~socks_tunnel.protocol.messages.MESSAGE_MAX`. `candidates`: `address:port` texts.
    """

    fingerprints: list[tuple[str, str]]
    max_message_size: int
    candidates: list[str]


def check_sdp(sdp: str) -> SdpFacts:
    """Checks the whole SDP and returns the needed facts.

    Raises :class:`RemoteProtocolError` of kind `sdp` with a sentence about what is wrong.
    """
    if len(sdp) > SDP_MAX:
        raise _bad(f"it is {len(sdp)} characters long, over the limit of {SDP_MAX}")
    lines = sdp.splitlines()
    if not lines or lines[0] != "v=0":
        raise _bad("it does not start with v=0")
    media = [line for line in lines if line.startswith("m=")]
    if len(media) != 1 or not re.fullmatch(
        r"m=application [0-9]{1,5} UDP/DTLS/SCTP webrtc-datachannel", media[0]
    ):
        raise _bad("it must have one section, for data channels over UDP/DTLS/SCTP")
    attributes: dict[str, list[str]] = {}
    for line in lines:
        if line.startswith("a="):
            key, _, value = line[2:].partition(":")
            attributes.setdefault(key, []).append(value)
    for key in ("ice-ufrag", "ice-pwd"):
        if not all(map(_ICE_CHARS.fullmatch, _present(attributes, key))):
            raise _bad(f"its {key} is malformed")
    for value in _present(attributes, "setup"):
        if value not in {"active", "passive", "actpass"}:
            raise _bad(f"its a=setup has the unknown value {value[:20]!r}")
    for value in _present(attributes, "sctp-port"):
        if not 1 <= _number(value, "sctp-port") <= 65535:
            raise _bad("its sctp-port is out of range")
    return SdpFacts(
        fingerprints=_fingerprints(attributes),
        max_message_size=_max_message_size(attributes),
        candidates=_candidates(attributes),
    )


def _bad(what: str) -> RemoteProtocolError:
    return RemoteProtocolError(f"the peer's SDP cannot be used: {what}", kind="sdp")


def _present(attributes: dict[str, list[str]], key: str) -> list[str]:
    values = attributes.get(key)
    if not values:
        raise _bad(f"it has no a={key}")
    return values


def _number(value: str, key: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", value):
        raise _bad(f"its {key} is no number")
    return int(value)


def _fingerprints(attributes: dict[str, list[str]]) -> list[tuple[str, str]]:
    """Returns the fingerprints.

    Those of other hash functions are ignored, as aiortc does.
    """
    found = []
    for value in attributes.get("fingerprint", []):
        algorithm, _, digest = value.partition(" ")
        algorithm = algorithm.lower()
        size = DIGEST_SIZES.get(algorithm)
        if not _HEX_PAIRS.fullmatch(digest) or (size and len(digest) != 3 * size - 1):
            raise _bad("it has a malformed DTLS fingerprint")
        found.append((algorithm, digest))
    if not any(algorithm in DIGEST_SIZES for algorithm, _ in found):
        raise _bad("it has no DTLS fingerprint of sha-256 or stronger")
    return found


def _max_message_size(attributes: dict[str, list[str]]) -> int:
    """Returns the size. RFC 8841 section 6: absent means 65536, 0 means any size."""
    size = MESSAGE_MAX
    for value in attributes.get("max-message-size", []):
        size = _number(value, "max-message-size") or MESSAGE_MAX
        if size < MESSAGE_MIN:
            raise _bad(f"it takes messages of at most {size} bytes; {MESSAGE_MIN} are needed")
    return min(size, MESSAGE_MAX)


def _candidates(attributes: dict[str, list[str]]) -> list[str]:
    """candidate: foundation component transport priority address port typ type ... (RFC 8839)."""
    values = attributes.get("candidate", [])
    if len(values) > CANDIDATES_MAX:
        raise _bad(f"it has {len(values)} candidates, over the limit of {CANDIDATES_MAX}")
    found = []
    for value in values:
        fields = value.split()
        if len(fields) < 8 or len(fields) % 2 or fields[6] != "typ" or fields[1] != "1":
            raise _bad("it has a malformed candidate")
        _number(fields[3], "candidate priority")
        try:
            address = ipaddress.ip_address(fields[4])
        except ValueError:
            # It is a name, such as the .local names of browsers. No name is looked up for a peer.
            raise _bad("it has a candidate that is no IP address") from None
        if "%" in fields[4]:
            # RFC 8839 section 5.1 has no zones: the peer would choose an interface of this host.
            raise _bad("it has a candidate with a zone")
        if not 0 < _number(fields[5], "candidate port") <= 65535:
            raise _bad("it has a candidate whose port is out of range")
        found.append(f"{address} port {fields[5]}")
    return found
