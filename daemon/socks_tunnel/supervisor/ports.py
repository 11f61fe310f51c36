"""What routing needs of others: the channel of a worker, a link that is up, its terms."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from socks_tunnel.protocol.ipc import Control
from socks_tunnel.protocol.messages import Resume


class WorkerPort(Protocol):
    """What the router needs of a worker's IPC channel."""

    @property
    def paused(self) -> bool:
        """True while the operating system's buffer is full and bytes wait in this process."""

    @property
    def urgent(self) -> int:
        """Bytes of urgent messages among them."""

    @property
    def buffered(self) -> int:
        """Bytes that wait in this process for the worker to read."""

    def send_messages(self, session: int, messages: Sequence[bytes]) -> None:
        """Sends tunnel messages."""

    def send_urgent(self, session: int, messages: Sequence[bytes]) -> None:
        """Sends tunnel messages that may overtake those that wait."""

    def send_control(self, session: int, message: Control) -> None:
        """Sends a control message."""


class LinkPort(Protocol):
    """What the router needs of a link that is up."""

    @property
    def rtt(self) -> float | None:
        """Last measured round trip in seconds."""

    def send_many(self, messages: list[bytes]) -> None:
        """Sends flow messages. Each byte of them is reported by `drained` later, sent or not.

        Raises :class:`LocalProtocolError` for what no worker may send.
        """

    def send_resume(self, resume: Resume) -> None:
        """Sends RESUME."""


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What both HELLOs have agreed upon for a link.

    `session` names the session (16 bytes), the rest is the peer's, as in protocol.md section 5.
    `resume` says whether both sides have that feature. `rank` is the peer's place in the
    configuration, `weight` its share of this process beside others.
    """

    session: bytes
    window: int
    max_data: int
    idle_udp: int
    features: tuple[str, ...]
    resume: bool
    rank: int = 0
    weight: int = 1
