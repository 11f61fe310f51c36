"""The keys of peers."""

from functools import lru_cache
from typing import Final

from socks_tunnel.config.settings import Peer
from socks_tunnel.signaling.identity import parse_public_key

KEYS_REMEMBERED: Final = 16_384
"""Public keys whose bytes are remembered: a reload asks four times for those of every peer."""

_parsed = lru_cache(maxsize=KEYS_REMEMBERED)(parse_public_key)


def keys_of(peer: Peer) -> list[bytes]:
    """Returns the keys that a peer may use, the newest first."""
    texts = [peer.public_key, *([peer.old_public_key] if peer.old_public_key else [])]
    return [_parsed(text) for text in texts]
