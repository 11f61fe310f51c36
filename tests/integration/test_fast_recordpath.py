"""How the path of records hands packets up: in batches, and once for each turn."""

from unittest.mock import Mock

from socks_tunnel.peer.fast.recordpath import PACKETS_MAX, RecordPath


class Above:
    """Takes packets, as an association does."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.turns = 0
        self.error: Exception | None = None

    def receive_packets(self, packets: list[bytes]) -> None:
        self.batches.append(packets)
        if self.error is not None:
            raise self.error

    def turn_ended(self) -> None:
        self.turns += 1

    def path_mtu_exceeded(self, size: int) -> None:
        raise AssertionError(size)

    def transport_writable(self) -> None:
        self.turns += 100

    def path_changed(self) -> None:
        raise AssertionError("there is no path")


async def test_packets_are_handed_up_in_batches_and_the_turn_ends_once() -> None:
    path, above = RecordPath(Mock(), {}), Above()
    path.receiver = above
    packets = [b"%d" % number for number in range(PACKETS_MAX + 3)]
    path.pending += packets
    path.turn_ended()
    assert [packet for batch in above.batches for packet in batch] == packets
    assert len(above.batches[0]) == PACKETS_MAX
    assert above.turns == 1
    assert path.pending == []
    assert path.heard_at is not None
    path.turn_ended()
    assert above.turns == 1, "nothing came, so there is nothing to say"
    path.send_resumed()
    assert above.turns == 101


async def test_without_a_receiver_packets_are_dropped() -> None:
    path = RecordPath(Mock(), {})
    path.pending.append(b"x")
    path.turn_ended()
    path.send_resumed()
    assert path.pending == []


async def test_an_exception_above_is_the_owners() -> None:
    owner = Mock()
    path, above = RecordPath(owner, {}), Above()
    path.receiver = above
    above.error = ZeroDivisionError("a bug above")
    owner.failed.side_effect = lambda _: setattr(path, "failed", True)
    path.pending.append(b"x")
    path.turn_ended()
    owner.failed.assert_called_once_with(above.error)
    assert above.turns == 0, "what has failed is told of nothing"
    path.pending.append(b"y")
    path.turn_ended()
    assert above.batches == [[b"x"]]
    assert path.pending == []
