"""One client of the service, and the frames that wait for it. No socket and no clock."""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final

from socks_tunnel.protocol.rendezvous import (
    CLOSE_TOO_MUCH,
    KEY_SIZE,
    FromKey,
    encode,
    loads_of,
)
from socks_tunnel.protocol.rendezvous_load import KeyLoad, Load
from socks_tunnel.protocol.rendezvous_relay import RelayQueue, count_relayed
from socks_tunnel.rendezvous.limits import Bucket

OUTBOX_MAX: Final = 1 << 20
"""Bytes of frames that may wait for one client."""

_PARCEL: Final = encode(FromKey(bytes(KEY_SIZE), b""))[: len(b"\x83\xa4kind\xa8envelope")]
_RELAYED: Final = b"\xa4kind\xa5relay"


def is_parcel(frame: bytes) -> bool:
    """Returns whether a frame from the service carries a message of one client to another."""
    return frame.startswith(_PARCEL)


class Client:
    """One connection whose key is proved.

    `wake` is called when frames begin to wait, or more frames wait. `end` is called with the code
    and a reason when the connection has to be closed.
    """

    __slots__ = (
        "_end",
        "_outbox",
        "_outbox_size",
        "bucket",
        "counts",
        "ended",
        "enrolled_by",
        "enrolled_until",
        "excess",
        "guest",
        "guest_bucket",
        "guests",
        "key",
        "listed",
        "load",
        "load_at",
        "name",
        "relayed",
        "wake",
        "wants_loads",
        "watched",
    )

    def __init__(
        self,
        key: bytes,
        name: str,
        *,
        listed: bool,
        bucket: Bucket,
        counts: Counter[str],
        wake: Callable[[], None],
        end: Callable[[int, str], None],
    ) -> None:
        self.key = key
        self.name = name
        self.listed = listed
        self.bucket = bucket
        self.counts = counts
        """The counters of the registry."""
        self.excess = 0
        """Envelopes so far that were beyond the rate."""
        self.watched: set[bytes] = set()
        self.enrolled_by: bytes | None = None
        """The listed key that has enrolled it, if it was admitted for that."""
        self.enrolled_until = 0
        """The Unix time at which that ends; 0: without an end, or it is not here for that."""
        self.guest = False
        """Whether it may stay only for a short time, to join."""
        self.guests = False
        """Whether it accepts envelopes of keys that it does not watch."""
        self.guest_bucket: Bucket | None = None
        self.load: Load | None = None
        """The load that it reported at the time `load_at`."""
        self.load_at = 0.0
        self.wants_loads = False
        """Whether it is told the load of the clients that it watches."""
        self.relayed: RelayQueue | None = None
        """Datagrams for it, which are sent after the outbox; None until there are some."""
        self.ended = False
        self.wake = wake
        self._end = end
        self._outbox: deque[bytes] = deque()
        self._outbox_size = 0

    @property
    def waiting(self) -> int:
        """Bytes that wait in the outbox."""
        return self._outbox_size

    def push(self, frame: bytes) -> bool:
        """Puts a frame into the outbox. Returns False if there is no room."""
        if self.ended or self._outbox_size + len(frame) > OUTBOX_MAX:
            return False
        self._outbox.append(frame)
        self._outbox_size += len(frame)
        if len(self._outbox) == 1:
            self.wake()
        return True

    def tell(self, frames: Iterable[bytes]) -> None:
        """Puts frames into the outbox that the client must not miss.

        Without room, the client is ended.
        """
        for frame in frames:
            if not self.push(frame):
                self.counts["ended: outbox"] += 1
                self.finish(CLOSE_TOO_MUCH, "it does not read what it is sent")
                return

    def tell_loads(self, loads: list[KeyLoad]) -> None:
        """Tells it the load of others, if it wants to know that."""
        if self.wants_loads:
            self.tell(loads_of(loads))

    def pop(self) -> bytes | None:
        """Takes the next frame from the outbox, or else relayed datagrams, or None."""
        if not self._outbox:
            return None if self.relayed is None else self.relayed.pop()
        frame = self._outbox.popleft()
        self._outbox_size -= len(frame)
        return frame

    def lost(self, frame: bytes | None) -> None:
        """Counts a frame that :meth:`pop` returned and that could not be sent."""
        if frame is None:
            return
        if is_parcel(frame):
            self.counts["dropped: not sent"] += 1
        elif frame.startswith(_RELAYED, 1):  # after the byte with the number of fields
            self.counts["relay dropped: gone"] += count_relayed(frame, "from")

    def finish(self, code: int, reason: str) -> None:
        """Has the connection closed. Frames that wait for it are dropped and counted."""
        if not self.ended:
            self.ended = True
            self.counts["dropped: client gone"] += sum(map(is_parcel, self._outbox))
            self._outbox.clear()
            self._outbox_size = 0
            if self.relayed is not None:
                self.relayed.clear()
                self.relayed = None
            self._end(code, reason)
