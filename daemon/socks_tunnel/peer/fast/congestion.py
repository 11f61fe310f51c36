"""How much may be in flight: congestion controllers. Neither clock nor I/O.

A controller owns `window` (bytes that may be in flight) and `pacing_rate` (bytes a second; 0: send
as SACKs come in). The sender tells it of each SACK, of the first loss of an episode, of time-outs,
and of losses that turned out to be none.
"""

from typing import Final, Literal, Protocol

INITIAL_PACKETS: Final = 10
"""Packets of the initial window (RFC 6928)."""

WINDOW_PACKETS_MIN: Final = 4
"""Packets that a window never falls below but after a time-out."""

WINDOW_BYTES_MAX: Final = 33_554_432
"""Bytes of the largest window: twice the largest receive window of ours."""

PACING_RTT_MIN: Final = 0.004
"""Seconds of round trip below which nothing is paced: a timer of the event loop is not finer."""

CongestionName = Literal["cubic", "bbr"]


class Acked:
    """What one SACK says to a controller. One object is used again for each SACK."""

    __slots__ = (
        "acked",
        "app_limited",
        "credit",
        "flight",
        "in_recovery",
        "lost",
        "min_rtt",
        "now",
        "paced",
        "rate",
        "round_start",
        "rtt",
        "slow",
        "srtt",
        "there",
    )

    def __init__(self) -> None:
        self.now = 0.0
        self.acked = 0
        """Bytes that this SACK is the first to acknowledge."""
        self.lost = 0
        """Bytes that were declared lost with it, or by a timer since the SACK before."""
        self.flight = 0
        """Bytes in flight before it, without those whose SACKs wait on the way back."""
        self.in_recovery = False
        self.paced = False
        """Whether the pacer holds something back that the window would let go."""
        self.rtt = 0.0
        """A round trip in seconds that it measured; 0 if none."""
        self.there = 0.0
        """The same without what its SACK has waited in the queue of the way back, as far as the
        ways are told apart; 0 if that is not known."""
        self.slow = 0.0
        """How slow the path is, from 0 to 1: to which part the ways are told apart."""
        self.credit = 0
        """Bytes that may be in flight beyond the window, as their SACKs wait on the way back."""
        self.srtt = 0.0
        self.min_rtt = 0.0
        self.rate = 0.0
        """Bytes a second at which the peer received lately; 0 if unknown."""
        self.app_limited = False
        """Whether the sender had too little to send while this rate was measured."""
        self.round_start = False
        """Whether this is the first SACK of a new round trip."""


class Controller(Protocol):
    """What the sender asks of a congestion controller."""

    window: int
    pacing_rate: float
    one_way: bool
    """Whether on a slow path the window is of the way there alone."""
    conserves: bool
    """Whether proportional rate reduction (RFC 6937) holds the sender back in recovery."""

    def acknowledged(self, event: Acked) -> None:
        """Learns of a SACK that acknowledged something."""

    def congestion(self, now: float, flight: int) -> None:
        """Learns of the first loss of an episode; `flight` is from before it."""

    def timeout(self, now: float, flight: int) -> None:
        """Learns that the retransmission timer expired: nothing is in flight any more."""

    def undo(self) -> None:
        """Learns that the last loss, or time-out, was none: the packets had only been late."""

    def set_packet_size(self, size: int) -> None:
        """Learns the size in bytes of a full packet."""
