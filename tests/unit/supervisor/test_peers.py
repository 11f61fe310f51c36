"""The keys of peers."""

from base64 import b64encode

import pytest

from socks_tunnel.config.settings import Peer
from socks_tunnel.supervisor.peers import keys_of, share_a_key


def key(number: int) -> str:
    return b64encode(bytes([number]) * 32).decode()


def peer(number: int, old: int | None = None) -> Peer:
    return Peer(
        name="office",
        public_key=key(number),
        old_public_key=None if old is None else key(old),
        url=None,
        tls_ca=None,
        proxy=None,
        rendezvous=None,
        enrolment_file=None,
        policy=None,
        weight=1,
    )


def test_the_newest_key_comes_first() -> None:
    assert keys_of(peer(1)) == [b"\1" * 32]
    assert keys_of(peer(2, old=1)) == [b"\2" * 32, b"\1" * 32]


@pytest.mark.parametrize(
    ("one", "other", "shared"),
    [
        (peer(1), peer(1), True),
        (peer(1), peer(2), False),
        (peer(1), peer(2, old=1), True),
        (peer(2, old=1), peer(1), True),
        (peer(2, old=1), peer(3, old=1), True),
        (peer(2, old=1), peer(3, old=4), False),
    ],
)
def test_a_peer_is_the_same_as_long_as_they_share_a_key(
    one: Peer, other: Peer, *, shared: bool
) -> None:
    assert share_a_key(one, other) is shared
