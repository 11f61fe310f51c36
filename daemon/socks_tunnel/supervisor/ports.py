"""What routing needs: the channel of a worker, a link that is up, and the terms of that link."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from socks_tunnel.protocol.ipc import Control
from socks_tunnel.protocol.messages import Resume


class WorkerPort(Protocol):
    """What the router needs of a worker's IPC channel."""

    @property
    def paused(self) -> bool:
        """Whether the operating system's buffer is full, so that bytes wait in this process."""

    @property
    def urgent(self) -> int:
        """Bytes of urgent messages that wait in this process."""

    @property
    def buffered(self) -> int:
        """Bytes that wait in this process for the worker to read."""

    def send_messages(self, session: int, messages: Sequence[bytes]) -> None:
        """Sends tunnel messages."""

    def send_urgent(self, session: int, messages: Sequence[bytes]) -> None:
        """Sends tunnel messages that may overtake others that wait."""

    def send_control(self, session: int, message: Control) -> None:
        """Sends a control message."""


class LinkPort(Protocol):
    """What the router needs of a link that is up."""

    @property
    def rtt(self) -> float | None:
        """Last measured round trip in seconds."""

    def send_many(self, messages: list[bytes]) -> None:
        """Sends flow messages. All their bytes are later reported by `drained`, sent or not.

        Raises :class:`LocalProtocolError` for a message that no worker may send.
        """

    def send_resume(self, resume: Resume) -> None:
        """Sends RESUME."""


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """The terms of a link, from both HELLOs.

    `session` names the session (16 bytes). `window`, `max_data`, `idle_udp` and `features` are the
    peer's, as in docs/protocol.md section 5. `resume` says whether both sides have that feature.
    `rank` is the peer's place in the configuration, and `weight` its share of this process while
    others are busy.
    """

    session: bytes
    window: int
    max_data: int
    idle_udp: int
    features: tuple[str, ...]
    resume: bool
    rank: int = 0
    weight: int = 1
