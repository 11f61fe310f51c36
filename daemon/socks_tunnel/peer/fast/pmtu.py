"""Path MTU discovery in the packet layer (RFC 8899 for SCTP, section 6.2). Neither clock nor I/O.

Sizes are those of SCTP packets; `overhead` is what IP, UDP and DTLS add on the wire. States::

                +--------------- path changed, black hole -----------------+
                v                                                          |
    DISABLED  BASE --start--> SEARCHING --all candidates tried--> COMPLETE-+
                                 ^                                    |
                                 +-------------- raise timer ---------+

The base is a packet of at most 1,200 bytes on the wire, which reaches the peer on every path that
QUIC uses too (RFC 9000 section 14), so nothing needs to be confirmed before data flows. From there
the usual MTUs are tried, the largest first where it is likely, each a few times since a probe may
be lost for other reasons. A probe is a HEARTBEAT that is filled up, and never carries data.
"""

from typing import Final, Literal

BASE_WIRE: Final = 1_200
"""Bytes of an IP packet that every path is taken to carry."""

CANDIDATES: Final = (1_500, 1_492, 1_480, 1_454, 1_420, 1_400, 1_360, 1_280, 1_240)
"""MTUs of IP packets that are tried, in this order: Ethernet, PPPoE, tunnels, the IPv6 minimum."""

PROBES_MAX: Final = 3
"""Probes without an answer after which a size is taken to be too large (RFC 8899 5.1.2)."""

PROBE_TIMEOUT_MIN: Final = 0.5
"""Seconds that an answer to a probe is waited for at least."""

RAISE_INTERVAL: Final = 600.0
"""Seconds until larger sizes are tried again (RFC 8899 section 5.1.1)."""

PmtuState = Literal["disabled", "base", "searching", "complete"]


class PathMtu:
    """The packet size of one path. `packet_size` is what may be sent now, a multiple of 4."""

    __slots__ = (
        "_at",
        "_ceiling",
        "_due",
        "_tries",
        "_waiting",
        "overhead",
        "packet_size",
        "state",
    )

    def __init__(self, overhead: int) -> None:
        self.state: PmtuState = "disabled"
        self.overhead = overhead
        self._ceiling = CANDIDATES[0]
        self._at = 0
        self._tries = 0
        self._due = 0.0
        self._waiting = 0
        self.packet_size = self._size(BASE_WIRE)

    def _size(self, wire: int) -> int:
        return (wire - self.overhead) & ~3

    @property
    def wake_at(self) -> float:
        """When :meth:`probe` has something to do; 0 if never."""
        return self._due

    def start(self, now: float) -> None:
        """Begins to search, once the association is up and probes may be sent without fragments."""
        self.state = "searching"
        self._at = 0
        self._tries = 0
        self._waiting = 0
        self._due = now

    def restart(self, overhead: int) -> None:
        """Falls back to the base, because the path is another one; :meth:`start` goes on."""
        self.state = "base"
        self.overhead = overhead
        self._ceiling = CANDIDATES[0]
        self._due = 0.0
        self._waiting = 0
        self.packet_size = self._size(BASE_WIRE)

    def probe(self, now: float, rtt: float) -> int:
        """Returns the size of the probe to send now, or 0 for none."""
        if not self._due or now < self._due:
            return 0
        if self.state == "complete":
            self._ceiling = CANDIDATES[0]
            self.start(now)
        if self._tries >= PROBES_MAX:
            self._at += 1
            self._tries = 0
        while self._at < len(CANDIDATES):
            wire = CANDIDATES[self._at]
            size = self._size(wire)
            if wire <= self._ceiling and size > self.packet_size:
                self._tries += 1
                self._waiting = size
                self._due = now + max(PROBE_TIMEOUT_MIN, 3 * rtt)
                return size
            self._at += 1
        self._complete(now)
        return 0

    def _complete(self, now: float) -> None:
        self.state = "complete"
        self._waiting = 0
        self._due = now + RAISE_INTERVAL

    def acknowledged(self, size: int, now: float) -> bool:
        """Takes the answer to a probe; returns whether `packet_size` has grown."""
        if size != self._waiting or size <= self.packet_size:
            return False
        self.packet_size = size
        self._complete(now)
        return True

    def exceeded(self, size: int, now: float) -> bool:
        """Learns that this host itself refuses packets of `size`; returns whether it fell back."""
        self._ceiling = min(self._ceiling, size + self.overhead - 1)
        if size == self._waiting and size > self.packet_size:
            self._tries = PROBES_MAX
            self._due = now
        if size > self.packet_size:
            return False
        return self.black_hole(now)

    def black_hole(self, now: float) -> bool:
        """Falls back to the base because nothing large arrives any more (RFC 8899 section 4.3)."""
        if self.state == "disabled" or self.packet_size == self._size(BASE_WIRE):
            return False
        self._ceiling = self.packet_size + self.overhead - 4
        self.packet_size = self._size(BASE_WIRE)
        self.start(now)
        return True
