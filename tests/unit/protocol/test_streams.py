"""The two byte streams of a flow: windows, kept bytes, and where a resume goes on."""

import pytest

from socks_tunnel.protocol.byte_queue import JOIN_MAX, PIECE_COST, ByteQueue
from socks_tunnel.protocol.errors import LocalProtocolError, RemoteProtocolError
from socks_tunnel.protocol.streams import (
    ROUND_TRIP_MIN,
    WINDOW_MAX,
    ReceiveStream,
    SendStream,
)


def ready(send: SendStream) -> bool:
    """Whether there is something to transmit. A call, as it changes behind the checker's back."""
    return send.ready


# --- queue --------------------------------------------------------------------------------------


def test_a_queue_gives_back_what_was_put_in() -> None:
    queue = ByteQueue()
    for piece in (b"a" * 2000, b"b" * 2000, b"c" * 2000):
        queue.append(piece)
    assert (len(queue), queue.cost) == (6000, 6000 + 3 * PIECE_COST)
    assert [bytes(piece) for piece in queue.peek(2)] == [b"a" * 2000, b"b" * 2000]
    queue.drop(2001)
    assert (queue.size, queue.cost) == (3999, 3999 + 2 * PIECE_COST)
    assert bytes(queue.peek(9)[0]) == b"b" * 1999
    queue.drop(3999)
    assert (queue.size, queue.cost, queue.peek(9)) == (0, 0, [])


def test_short_pieces_are_joined_so_that_many_cost_little() -> None:
    queue = ByteQueue()
    for _ in range(10_000):
        queue.append(b"xy")
    assert queue.size == 20_000
    assert queue.cost < 20_000 + 20_000 // (JOIN_MAX // 2) * PIECE_COST
    assert b"".join(queue.peek(10_000)) == b"xy" * 10_000
    assert b"".join(queue.export()) == b"xy" * 10_000


def test_a_queue_can_be_cleared_and_not_overdrawn() -> None:
    queue = ByteQueue()
    queue.append(b"abc")
    with pytest.raises(LocalProtocolError, match="dropping 4 bytes"):
        queue.drop(4)
    queue.clear()
    assert (queue.size, queue.cost) == (0, 0)


# --- sending ------------------------------------------------------------------------------------


def test_bytes_that_pass_through_are_kept_until_they_are_consumed() -> None:
    send = SendStream(10_000)
    send.write_through(b"a" * 4000)
    send.write_through(b"b" * 4000)
    assert (send.next, send.end, send.room, send.unsent) == (8000, 8000, 2000, 0)
    assert send.cost == 8000 + 2 * PIECE_COST
    assert send.update(3999, 10_000) is False
    assert send.cost == 8000 + 2 * PIECE_COST, "a piece is kept whole while a byte of it is"
    assert send.update(4000, 20_000) is True
    assert send.cost == 4000 + PIECE_COST
    send.update(8000, 20_000)
    assert send.cost == 0


def test_what_does_not_fit_is_no_passing_through() -> None:
    send = SendStream(10)
    with pytest.raises(LocalProtocolError):
        send.write_through(b"x" * 11)
    send.write(b"early")
    with pytest.raises(LocalProtocolError, match="passed through at 0 of 5"):
        send.write_through(b"x")


def test_early_bytes_leave_as_the_window_opens() -> None:
    send = SendStream(1)
    send.write(b"hello")
    send.write(b"")
    assert ready(send)
    assert bytes(send.take(100)) == b"h"
    assert not ready(send)
    assert send.take(100) == b""
    send.update(1, 3)
    assert bytes(send.take(1)) == b"e"
    assert bytes(send.take(100)) == b"l"
    send.update(3, 1000)
    assert bytes(send.take(100)) == b"lo"
    send.write(b" again")
    assert bytes(send.take(3)) == b" ag"
    assert bytes(send.take(100)) == b"ain"
    assert not ready(send)


def test_pieces_that_are_joined_while_they_leave_keep_their_place() -> None:
    send = SendStream(100)
    send.write_through(b"ab")
    send.write(b"cd")
    assert bytes(send.take(1)) == b"c"
    send.write(b"ef")
    assert bytes(send.take(100)) == b"def"
    send.write_through(b"gh")
    assert (send.next, send.end) == (8, 8)
    send.resume(1, 100, eof_received=False)
    assert bytes(send.take(100)) == b"bcdefgh"


def test_a_resume_goes_back_to_what_the_peer_has() -> None:
    send = SendStream(10_000)
    send.write_through(b"a" * 3000)
    send.write_through(b"b" * 3000)
    send.update(1000, 10_000)
    send.resume(2000, 12_000, eof_received=False)
    assert (send.acked, send.next, send.end, send.limit) == (2000, 2000, 6000, 12_000)
    assert bytes(send.take(5000)) == b"a" * 1000
    assert bytes(send.take(5000)) == b"b" * 3000
    assert send.take(5000) == b""
    send.resume(6000, 0, eof_received=False)
    assert (send.unsent, send.cost, send.limit) == (0, 0, 12_000)


def test_an_update_may_overtake_what_a_resume_sends_again() -> None:
    send = SendStream(10_000)
    send.write_through(b"a" * 3000)
    send.write_through(b"b" * 3000)
    send.resume(0, 10_000, eof_received=False)
    send.update(4000, 10_000)
    assert bytes(send.take(9000)) == b"b" * 2000
    assert send.take(1) == b""


@pytest.mark.parametrize(("received", "eof"), [(999, False), (3001, False), (2000, True)])
def test_a_peer_that_lies_in_resume_is_refused(received: int, eof: bool) -> None:
    send = SendStream(10_000)
    send.write_through(b"a" * 3000)
    send.update(1000, 10_000)
    with pytest.raises(RemoteProtocolError, match="RESUME says"):
        send.resume(received, 10_000, eof_received=eof)


def test_the_end_of_file_follows_the_last_byte_and_is_sent_again_if_it_was_lost() -> None:
    send = SendStream(3)
    send.write(b"abcd")
    assert not send.take_eof(), "the local side goes on"
    send.finish()
    send.take(3)
    assert not ready(send)
    assert not send.take_eof(), "a byte has to go first"
    send.update(3, 10)
    assert bytes(send.take(10)) == b"d"
    assert ready(send)
    assert send.take_eof()
    assert not send.take_eof()
    assert not ready(send)
    send.resume(4, 10, eof_received=False)
    assert ready(send)
    assert send.take_eof()
    send.resume(4, 10, eof_received=True)
    assert not ready(send)
    assert not send.take_eof()
    with pytest.raises(LocalProtocolError, match=r"^the local side ended its stream twice$"):
        send.finish()
    with pytest.raises(LocalProtocolError, match=r"^the local side wrote after its end of file$"):
        send.write(b"x")


def test_consumed_beyond_what_was_sent_is_an_error_and_stale_updates_change_nothing() -> None:
    send = SendStream(10)
    send.write_through(b"abc")
    with pytest.raises(RemoteProtocolError) as caught:
        send.update(4, 10)
    assert caught.value.kind == "window-consumed"
    assert send.update(2, 20)
    assert not send.update(1, 15)
    assert (send.acked, send.limit) == (2, 20)


def test_a_peer_that_allows_without_bound_makes_us_keep_no_more_than_a_window() -> None:
    send = SendStream(1 << 63)
    assert send.room == WINDOW_MAX
    piece = bytes(1 << 20)
    while send.room:
        send.write_through(piece)
    assert send.end == WINDOW_MAX
    assert send.update(len(piece), 1 << 63), "what is acknowledged makes room, whatever LIMIT says"
    assert send.room == len(piece)
    send.resume(3 * len(piece), 1 << 63, eof_received=False)
    assert send.limit == 3 * len(piece) + WINDOW_MAX


def test_what_has_ended_keeps_nothing() -> None:
    send = SendStream(10)
    send.write(b"abc")
    send.forget()
    assert (send.cost, send.unsent, send.take(9)) == (0, 0, b"")


# --- receiving ----------------------------------------------------------------------------------


def test_an_update_is_due_when_half_of_the_window_was_consumed() -> None:
    receive = ReceiveStream(100)
    receive.receive(100)
    assert receive.buffered == 100
    assert not receive.consume(49)
    assert receive.consume(1)
    assert receive.announce(1.0) == (50, 150)
    assert receive.announced == 50
    assert not receive.all_written
    receive.consume(50)
    assert receive.all_written


def test_bytes_beyond_limit_and_after_the_end_are_errors_of_the_peer() -> None:
    receive = ReceiveStream(10)
    with pytest.raises(RemoteProtocolError) as caught:
        receive.receive(11)
    assert caught.value.kind == "window-exceeded"
    receive.finish()
    with pytest.raises(RemoteProtocolError) as caught:
        receive.receive(1)
    assert caught.value.kind == "data-after-eof"
    with pytest.raises(RemoteProtocolError) as caught:
        receive.finish()
    assert caught.value.kind == "eof-twice"
    with pytest.raises(LocalProtocolError, match="consuming 1 bytes"):
        receive.consume(1)


def test_a_window_grows_while_the_sender_is_held_up_by_it() -> None:
    receive = ReceiveStream(100)
    receive.receive(100)
    receive.consume(60)
    receive.announce(10.0, round_trip=0.1, grow_to=1000)
    assert receive.window == 100, "nothing says how long that took"
    receive.receive(60)
    receive.consume(60)
    receive.announce(10.1, round_trip=0.1, grow_to=1000)
    assert receive.window == 200
    receive.receive(receive.limit - receive.received)
    receive.consume(100)
    receive.announce(11.0, round_trip=0.1, grow_to=1000)
    assert receive.window == 200, "a second for half a window: the sender was not held up"
    receive.receive(receive.limit - receive.received)
    receive.consume(receive.buffered)
    receive.announce(11.1, round_trip=0.1, grow_to=300)
    assert receive.window == 300


def test_consumed_bytes_are_announced_while_a_shrunk_window_gives_no_more_room() -> None:
    receive = ReceiveStream(100)
    receive.shrink(10)
    receive.receive(50)
    assert not receive.consume(4)
    assert receive.consume(1), "half of the shrunk window"
    assert receive.announce(1.0) == (5, 100)
    assert not receive.consume(4)
    assert receive.consume(1)


def test_a_window_shrinks_only_for_later_updates() -> None:
    receive = ReceiveStream(100)
    receive.shrink(10)
    assert receive.limit == 100
    receive.receive(100)
    receive.consume(100)
    assert receive.announce(1.0) == (100, 110)


def test_announced_stands_at_the_start_and_nothing_was_announced_yet() -> None:
    receive = ReceiveStream(10)
    assert (receive.announced, receive.updated_at) == (0, 0.0)


def test_no_more_is_consumed_than_came() -> None:
    receive = ReceiveStream(10)
    receive.receive(10)
    receive.consume(8)
    with pytest.raises(LocalProtocolError, match="consuming 5 bytes with only 2 received"):
        receive.consume(5)


@pytest.mark.parametrize(
    ("consumed", "now", "window"),
    [
        (49, 1.0, 100),
        (50, 1.0, 200),
        (50, 1.25, 200),  # one round trip: two of them take as much as the window
        (50, 1.3125, 100),
        (75, 1.375, 200),
        (75, 1.4375, 100),
    ],
)
def test_a_window_grows_if_two_round_trips_consume_as_much(
    consumed: int, now: float, window: int
) -> None:
    receive = ReceiveStream(100)
    receive.announce(1.0)
    receive.receive(consumed)
    receive.consume(consumed)
    receive.announce(now, round_trip=0.25, grow_to=1000)
    assert receive.window == window


def transfer(rate: float, round_trip: float, measured: float) -> int:
    """Returns the window after a transfer that a path of this rate and round trip limits."""
    receive = ReceiveStream(262_144)
    now = 1.0
    sent: list[tuple[float, int]] = []  # when each update reaches the sender, and its LIMIT
    limit, position = receive.limit, 0
    while position < 50_000_000:
        now += 0.001
        while sent and sent[0][0] <= now:
            limit = sent.pop(0)[1]
        count = min(limit - position, int(rate * 0.001))
        position += count
        receive.receive(count)
        if receive.consume(count):
            update = receive.announce(now, round_trip=measured, grow_to=WINDOW_MAX)
            sent.append((now + round_trip, update[1]))
    return receive.window


def test_a_window_grows_to_what_the_path_holds_and_not_further() -> None:
    rate = 300e6 / 8
    window = transfer(rate, 0.08, 0.08)
    assert rate * 0.08 <= window <= 4 * rate * 0.08


def test_a_fast_short_path_does_not_get_the_longest_window() -> None:
    rate = 100e6
    assert transfer(rate, 0.0005, 0.0005) <= 4 * rate * ROUND_TRIP_MIN < WINDOW_MAX // 4


def test_a_window_does_not_grow_while_the_round_trip_is_not_known() -> None:
    assert transfer(100e6, 0.0005, 0.0) == 262_144


def test_errors_of_the_peer_say_what_it_did() -> None:
    receive = ReceiveStream(10)
    with pytest.raises(RemoteProtocolError, match=r"^the peer sent 11 bytes with a limit of 10$"):
        receive.receive(11)
    receive.finish()
    with pytest.raises(RemoteProtocolError, match=r"^DATA after SEND_EOF$"):
        receive.receive(1)
    with pytest.raises(RemoteProtocolError, match=r"^SEND_EOF came twice$"):
        receive.finish()
    send = SendStream(10)
    with pytest.raises(RemoteProtocolError, match="CONSUMED 4, but only 0 bytes were sent"):
        send.update(4, 10)


# --- what kept bytes cost, and where they are -----------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "cost"),
    [
        ((10, 20), 30 + PIECE_COST),
        ((JOIN_MAX - 1, 1), JOIN_MAX + PIECE_COST),
        ((JOIN_MAX, 1), JOIN_MAX + 1 + 2 * PIECE_COST),
        ((1000, 100), 1100 + 2 * PIECE_COST),
    ],
)
def test_what_two_pieces_cost(sizes: tuple[int, int], cost: int) -> None:
    queue, kept, passed = ByteQueue(), SendStream(0), SendStream(10_000)
    for size in sizes:
        queue.append(bytes(size))
        kept.write(bytes(size))
        passed.write_through(bytes(size))
    assert [queue.cost, kept.cost, passed.cost] == [cost] * 3


def test_bytes_up_to_the_limit_pass_through() -> None:
    send = SendStream(10)
    assert send.eof is False
    send.write_through(bytes(10))
    assert send.next == 10


def pieces_of(send: SendStream, *letters: bytes) -> None:
    for letter in letters:
        send.write_through(letter * 2000)


def test_a_short_piece_that_is_joined_to_one_that_left_is_found() -> None:
    send = SendStream(100_000)
    pieces_of(send, b"a")
    send.write_through(b"b" * 10)
    send.write(b"c" * 5)
    assert bytes(send.take(100)) == b"c" * 5


def test_a_whole_piece_leaves_without_a_copy() -> None:
    send = SendStream(100_000)
    pieces = [bytes((letter,)) * 2000 for letter in b"abc"]
    for piece in pieces:
        send.write(piece)
    assert [send.take(2000) is piece for piece in pieces] == [True] * 3


def test_what_is_acknowledged_moves_what_is_kept() -> None:
    send = SendStream(100_000)
    pieces_of(send, b"a", b"b", b"c", b"d")
    send.update(2000, 100_000)
    send.write(b"e" * 2000)
    assert bytes(send.take(2000)) == b"e" * 2000
    send.update(4000, 100_000)
    send.write(b"f" * 2000)
    assert bytes(send.take(2000)) == b"f" * 2000
    send.resume(4000, 100_000, eof_received=False)
    assert b"".join(bytes(send.take(2000)) for _ in range(4)) == b"".join(
        letter * 2000 for letter in (b"c", b"d", b"e", b"f")
    )


def test_an_end_of_file_that_came_without_all_bytes_is_a_lie() -> None:
    send = SendStream(10_000)
    send.write_through(bytes(3000))
    send.finish()
    with pytest.raises(
        RemoteProtocolError,
        match=r"^RESUME says that our end of file was received, but it was not sent$",
    ) as caught:
        send.resume(2000, 10_000, eof_received=True)
    assert caught.value.kind == "resume-eof"
