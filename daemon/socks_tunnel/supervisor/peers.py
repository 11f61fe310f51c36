"""The keys of peers."""

from socks_tunnel.config.settings import Peer
from socks_tunnel.signaling.identity import parse_public_key


def keys_of(peer: Peer) -> list[bytes]:
    """Returns the keys that a peer may use, the newest first."""
    texts = [peer.public_key, *([peer.old_public_key] if peer.old_public_key else [])]
    return [parse_public_key(text) for text in texts]
