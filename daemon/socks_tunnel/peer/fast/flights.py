"""When the datagrams of a DTLS handshake are sent again. No clock, no I/O.

OpenSSL repeats a flight (RFC 6347 section 4.2.4) after 1, 2, 4 s and so on. So the loss of one
datagram costs a second, and flows may wait for it. Here copies of the last flight leave sooner. A
record that has arrived before is dropped by the receiver for its number (section 4.1.2.6), so a
copy changes nothing but what the loss has left open, and OpenSSL goes on beside that.

The last flight of a handshake is not answered by another one. Its sender repeats it until the first
record of data shows that the peer is done, too.
"""

from typing import Final

REPEAT_AFTER: Final = 0.25
"""Seconds until a flight is repeated for the first time."""

GROWTH: Final = 1.5
"""How many times longer each interval is than the one before."""

LONGEST: Final = 1.0
"""Seconds of the longest interval."""

REPEATS_MAX: Final = 32
"""How often one flight is repeated: half a minute, in which a link is up or given up."""

DATAGRAMS_MAX: Final = 16
"""Datagrams of one flight; further ones are left to OpenSSL."""


class Flight:
    """The last flight of one side. `now` is in seconds of any clock that never goes back."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []
        self.due = 0.0
        """When they are to be sent again; 0 if never."""
        self._begins = True
        self._interval = 0.0
        self._repeats = 0

    def turn(self) -> None:
        """What is written from here on is the next flight: the peer is listened to."""
        self._begins = True

    def wrote(self, datagram: bytes, now: float) -> None:
        """Takes a datagram that was just sent."""
        if self._begins:
            self._begins = False
            self.datagrams.clear()
            self._interval = REPEAT_AFTER
            self._repeats = 0
        if len(self.datagrams) < DATAGRAMS_MAX:
            self.datagrams.append(datagram)
        self.due = now + self._interval

    def repeat(self, now: float) -> list[bytes]:
        """Returns the datagrams to send again, if it is time to."""
        if not self.due or now < self.due:
            return []
        self._repeats += 1
        if self._repeats > REPEATS_MAX:
            self.over()
            return []
        self._interval = min(self._interval * GROWTH, LONGEST)
        self.due = now + self._interval
        return self.datagrams

    def over(self) -> None:
        """Repeats nothing any more: the handshake is done, or has failed."""
        self.due = 0.0
        self.datagrams.clear()
