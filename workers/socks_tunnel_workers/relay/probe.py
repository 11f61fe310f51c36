"""A probe finds out whether the peer of a session reaches a target. It carries no payload."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ClassVar, Final

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    CloseConnection,
    ConnectionOpened,
    Message,
    OpenConnection,
    SendEof,
    WindowUpdate,
)
from socks_tunnel_workers.relay.session import Flow, WorkerSession

PROBE_SECONDS: Final = 3.0
"""Seconds that a peer has to reach the target of a probe."""

GREETING_SECONDS: Final = 0.5
"""Seconds for which a connected probe stays open, so that a greeting of the target still finds a
flow and does not count as a late message."""


class ProbeFlow(Flow):
    """One probe. `done` is called once with a close reason: 0 if the target was reached."""

    __slots__ = ("_done", "_timer", "reached")

    kind: ClassVar[str] = "probe"

    def __init__(
        self,
        session: WorkerSession,
        conn_id: int,
        destination: HostPort,
        done: Callable[[int], None],
    ) -> None:
        super().__init__(session, conn_id, command="probe", client="")
        self.destination = destination
        self.reached = False
        self._done = done
        self._timer: asyncio.TimerHandle | None = None

    def ask(self) -> None:
        """Asks the endpoint to connect to the target."""
        session, destination = self.session, self.destination
        assert destination is not None
        self._timer = session.loop.call_later(
            PROBE_SECONDS, session.core.guard, self, self.abort, CloseReason.TTL_EXPIRED
        )
        session.send(OpenConnection(self.conn_id, destination.host, destination.port).encode())

    def on_message(self, message: Message) -> None:
        """Takes the endpoint's answer, or its CLOSE."""
        match message:
            case ConnectionOpened() if not self.reached:
                self.reached = True
                self._set_timer(GREETING_SECONDS)
                self._done(CloseReason.ORDERLY)
            case CloseConnection(reason=reason):
                self._ended(reason or CloseReason.GENERAL_FAILURE)
            case SendEof() if self.reached:
                return
            case _:
                raise self.unexpected(type(message).__name__)

    def on_data(self, data: memoryview) -> None:  # noqa: ARG002 - it is ignored
        """Ignores the target's greeting."""
        if not self.reached:
            raise self.unexpected("DATA")

    def on_window(self, update: WindowUpdate) -> None:
        """Ignores the window: a probe sends nothing."""

    def on_detached(self) -> None:
        """Ends the probe: without the link it says nothing about the target."""
        self.abort(CloseReason.RESUME_FAILED)

    def _set_timer(self, seconds: float) -> None:
        session = self.session
        if self._timer is not None:
            self._timer.cancel()
        self._timer = session.loop.call_later(
            seconds, session.core.guard, self, self.abort, CloseReason.ORDERLY
        )

    def abort(self, reason: int, *, tell_peer: bool = True) -> None:
        """Ends the probe."""
        if self.ended:
            return
        if tell_peer:
            self.session.core.close(self.conn_id, reason)
        self._ended(reason)

    def _ended(self, reason: int) -> None:
        if not self.end(reason):
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self.reached:
            self._done(reason)

    def row(self) -> tuple[int, int, int, int]:
        """Returns the row of RESUME, without positions: a probe has no stream."""
        return self.conn_id, 0, 0, 0

    # --- for people -----------------------------------------------------------------------------

    @property
    def up(self) -> int:
        """Always 0: a probe has no payload."""
        return 0

    @property
    def down(self) -> int:
        """Always 0: a probe has no payload."""
        return 0

    @property
    def state(self) -> str:
        """Either "connected", or "asked" while the endpoint has not answered."""
        return "connected" if self.reached else "asked"
