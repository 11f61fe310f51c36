"""Parcels that ask for something through a rendezvous service, and pauses between attempts."""

import asyncio
from collections.abc import Collection, Iterable
from typing import Final, Protocol

from socks_tunnel.signaling.carrier import SignalingError

ANSWERS: Final = {"offer": "answer", "join": "joined"}
"""The kind of answer to each kind of request, unless it is `refused`."""


class Delays(Protocol):
    """How long to wait between attempts."""

    def next(self) -> float:
        """Returns the seconds until the next attempt."""

    def reset(self) -> None:
        """Starts again from the shortest pause, after a success."""


class Waiting:
    """A request of ours that waits for its answer. `kind` is one of :data:`ANSWERS`."""

    def __init__(self, to: bytes, kind: str) -> None:
        self.to = to
        self.kind = kind
        self.answer: asyncio.Future[tuple[bytes, str]] = asyncio.get_running_loop().create_future()

    def fail(self, sentence: str, kind: type[SignalingError] = SignalingError) -> None:
        """Ends the wait with a reason."""
        if not self.answer.done():
            self.answer.set_exception(kind(sentence))


def fail_those(waiting: Iterable[Waiting], keys: Collection[bytes], sentence: str) -> None:
    """Ends the waits for answers of some keys with a reason."""
    for each in waiting:
        if each.to in keys:
            each.fail(sentence)
