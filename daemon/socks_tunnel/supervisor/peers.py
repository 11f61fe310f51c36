"""The keys of peers."""

from functools import lru_cache
from typing import Final

from socks_tunnel.config.settings import Peer
from socks_tunnel.signaling.identity import parse_public_key

KEYS_REMEMBERED: Final = 16_384
"""Public keys whose parsed form is cached: a reload needs those of each peer four times."""

_parsed = lru_cache(maxsize=KEYS_REMEMBERED)(parse_public_key)


def keys_of(peer: Peer) -> list[bytes]:
    """Returns the keys that a peer may use, the newest first."""
    if not peer.old_public_key:  # the common case: a reload needs thousands in one turn
        return [_parsed(peer.public_key)]
    return [_parsed(peer.public_key), _parsed(peer.old_public_key)]


def share_a_key(one: Peer, other: Peer) -> bool:
    """Returns whether a key of one peer is also one of the other."""
    if one.public_key == other.public_key:
        return True
    return not set(keys_of(one)).isdisjoint(keys_of(other))
