"""What an association tells its owner."""

from dataclasses import dataclass
from typing import Protocol

from aiortc import RTCDataChannel


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
