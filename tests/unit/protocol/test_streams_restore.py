"""Streams that another process goes on with, and those that begin or end."""

import pytest

from socks_tunnel.protocol.bounded import Malformed
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.streams import ReceiveStream, SendStream


def handed_over(send: SendStream) -> SendStream:
    return SendStream.restore(send.export())


@pytest.mark.parametrize("sent", [0, 1, 1999, 2000, 2001, 4000, 6000])
def test_what_is_kept_goes_on_at_the_next_byte(sent: int) -> None:
    send = SendStream(10_000)
    for letter in (b"a", b"b", b"c"):
        send.write(letter * 2000)
    while send.next < sent:
        send.take(sent - send.next)
    restored = handed_over(send)
    assert restored.export() == send.export()
    assert restored.cost == send.cost
    rest = b""
    while piece := restored.take(10_000):
        rest += piece
    assert rest == (b"a" * 2000 + b"b" * 2000 + b"c" * 2000)[sent:]


@pytest.mark.parametrize("acked", [0, 1000, 2000, 3000])
def test_what_is_acknowledged_afterwards_is_forgotten_as_before(acked: int) -> None:
    send = SendStream(10_000)
    for letter in (b"a", b"b"):
        send.write_through(letter * 2000)
    restored = handed_over(send)
    for stream in (send, restored):
        stream.update(acked, 10_000)
    assert restored.export() == send.export()
    assert restored.cost == send.cost


def test_streams_without_any_window_may_be_handed_over() -> None:
    assert handed_over(SendStream(0)).export() == SendStream(0).export()
    receive = ReceiveStream(0)
    assert ReceiveStream.restore(receive.export()).export() == receive.export()


def test_a_stream_whose_bytes_do_not_add_up_is_none() -> None:
    send = SendStream(10)
    send.write(b"abc")
    with pytest.raises(
        Malformed, match=r"^the kept bytes of a stream do not reach from 'first' to 'end'$"
    ):
        SendStream.restore({**send.export(), "pieces": [b"ab"]})
    receive = ReceiveStream(10)
    receive.receive(3)
    with pytest.raises(
        Malformed, match=r"^the bytes that wait for a socket are not those that came$"
    ):
        ReceiveStream.restore(receive.export())


def test_a_new_stream_is_open_at_both_ends() -> None:
    send, receive = SendStream(10), ReceiveStream(10)
    assert [send.eof, send.eof_sent, receive.eof, receive.eof_delivered] == [False] * 4
    assert all(
        end is False for end in (send.eof, send.eof_sent, receive.eof, receive.eof_delivered)
    )


def test_a_stream_that_has_ended_stands_at_its_end() -> None:
    send = SendStream(10)
    send.write_through(b"ab")
    send.write(b"c")
    send.forget()
    assert (send.acked, send.next, send.end, send.cost) == (3, 3, 3, 0)
    assert send.export()["first"] == 3
    assert handed_over(send).export() == send.export()
    send.write(b"d")
    assert bytes(send.take(9)) == b"d"


def test_the_smallest_window_grows_too() -> None:
    receive = ReceiveStream(1)
    receive.announce(1.0)
    receive.receive(1)
    receive.consume(1)
    receive.announce(1.25, round_trip=0.25, grow_to=10)
    assert receive.window == 2


def test_a_peer_that_claims_too_much_in_resume_is_told_what_is_wrong() -> None:
    send = SendStream(10)
    send.write_through(b"abc")
    with pytest.raises(
        RemoteProtocolError,
        match=r"^RESUME says that 4 bytes were received, but 0 were acknowledged and 3 sent$",
    ) as caught:
        send.resume(4, 10, eof_received=False)
    assert caught.value.kind == "resume-received"
