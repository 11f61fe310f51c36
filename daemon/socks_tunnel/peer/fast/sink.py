"""What an association tells its owner."""

from dataclasses import dataclass
from typing import Protocol, Self

from aiortc import RTCDataChannel

from socks_tunnel.peer.fast.datapath import DataPath


class SctpSink(Protocol):
    """What the association tells its owner; plain calls that must not raise."""

    def sctp_messages(self, batch: list[tuple[RTCDataChannel, bytes]]) -> None:
        """Takes the binary messages of one batch of packets, in the order of their arrival."""

    def sctp_drained(self, drained: list[tuple[RTCDataChannel, int]]) -> None:
        """Learns how many bytes of messages left the queue for good, sent or given up."""

    def sctp_turn_ended(self) -> None:
        """Learns that nothing more is said in this turn of the event loop.

        It follows whatever :meth:`sctp_messages` and :meth:`sctp_drained` said, and is never called
        from inside a call of the owner's: the owner may pass everything on now.
        """

    def sctp_failed(self, reason: str) -> None:
        """Learns that the association has ended, for another reason than a call of `stop`."""


@dataclass(frozen=True, slots=True)
class SctpSnapshot:
    """Figures of one association. Times in seconds, sizes in bytes, rates in bytes a second."""

    rtt: float
    rtt_min: float
    rtt_variation: float
    cwnd: int
    outstanding: int
    queued: int
    delivery_rate: float
    packet_size: int
    retransmissions: int
    spurious: int
    timeouts: int
    packets_sent: int
    sacks_sent: int
    sacks_received: int
    receive_window: int
    held: int
    """Bytes of unfinished or waiting messages that the peer makes us hold."""
    duplicates: int
    dropped: int
    """Chunks of the peer's that were not taken: they overstepped a limit."""
    malformed: int
    interleaved: bool
    batch_sacks: bool

    @classmethod
    def of(cls, path: DataPath) -> Self:
        """Returns the figures of this moment."""
        sender, receiver = path.sender, path.receiver
        recovery = sender.recovery
        return cls(
            rtt=recovery.trip.smoothed,
            rtt_min=recovery.trip.minimum,
            rtt_variation=recovery.trip.variation,
            cwnd=sender.controller.window,
            outstanding=recovery.flight,
            queued=sender.scheduler.queued,
            delivery_rate=sender.rate,
            packet_size=sender.packet_size,
            retransmissions=recovery.retransmissions,
            spurious=recovery.spurious,
            timeouts=recovery.timeouts_total,
            packets_sent=sender.packets_sent,
            sacks_sent=receiver.sacks_sent,
            sacks_received=sender.sacks_received,
            receive_window=receiver.window,
            held=receiver.reassembly.held,
            duplicates=receiver.duplicates,
            dropped=receiver.chunks_dropped,
            malformed=path.malformed,
            interleaved=sender.interleaved,
            batch_sacks=receiver.batch_sacks,
        )
