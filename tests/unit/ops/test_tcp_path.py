"""What TCP_INFO says of packets that are too large for the path."""

import struct

from socks_tunnel.ops.tcp_path import STALLED_AFTER, silent, too_large


def info(
    *, retransmits: int = 0, unacked: int = 0, out_of_order: int = 0, size: int = 232
) -> bytes:
    """A struct tcp_info of linux/tcp.h with segments of 1,448 bytes both ways."""
    raw = bytearray(232)
    raw[2] = retransmits
    for offset, value in ((16, 1448), (24, unacked), (84, 1448), (224, out_of_order)):
        struct.pack_into("=I", raw, offset, value)
    return bytes(raw[:size])


def test_what_we_send_is_lost() -> None:
    text = too_large(info(retransmits=STALLED_AFTER, unacked=3))
    assert text is not None
    assert "packets of up to 1448 bytes that we send" in text


def test_what_they_send_is_lost() -> None:
    text = too_large(info(out_of_order=1))
    assert text is not None
    assert "larger packets of the other side (we take up to 1448 bytes) are missing" in text


def test_one_loss_says_nothing() -> None:
    assert too_large(info(retransmits=STALLED_AFTER - 1, unacked=1)) is None
    assert too_large(info(retransmits=STALLED_AFTER)) is None
    assert too_large(info()) is None


def test_an_older_kernel_says_less() -> None:
    assert too_large(info(out_of_order=1, size=192)) is None
    assert too_large(b"") is None


def flow(*, acked: int, received: int, size: int = 232) -> bytes:
    raw = bytearray(info())
    struct.pack_into("=QQ", raw, 120, acked, received)
    return bytes(raw[:size])


def test_a_peer_that_takes_and_gives_nothing() -> None:
    text = silent(flow(acked=518, received=0))
    assert text is not None
    assert text.startswith("the connection was made, but nothing came back")


def test_a_peer_of_which_nothing_is_known() -> None:
    assert silent(flow(acked=518, received=1)) is None
    assert silent(flow(acked=1, received=0)) is None, "it has acknowledged the SYN alone"
    assert silent(flow(acked=518, received=0, size=127)) is None
