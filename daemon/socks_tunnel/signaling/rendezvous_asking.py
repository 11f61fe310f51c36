"""Parcels that ask for something through a rendezvous service, while they wait for an answer."""

import asyncio
from typing import Final

from socks_tunnel.signaling.carrier import SignalingError

ANSWERS: Final = {"offer": "answer", "join": "joined"}
"""What a parcel that asks is answered by, unless that is `refused`."""


class Waiting:
    """A parcel of ours that waits for its answer. `kind` is one of :data:`ANSWERS`."""

    def __init__(self, to: bytes, kind: str) -> None:
        self.to = to
        self.kind = kind
        self.answer: asyncio.Future[tuple[bytes, str]] = asyncio.get_running_loop().create_future()

    def fail(self, sentence: str, kind: type[SignalingError] = SignalingError) -> None:
        """Ends the wait with a reason."""
        if not self.answer.done():
            self.answer.set_exception(kind(sentence))
