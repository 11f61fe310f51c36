"""The way of one worker's tunnel messages to its sessions: what each message passes, and no more.

In a module of its own because it can be compiled (docs/adr/0028): the IPC stream of the worker
calls it, and it calls the session, with nothing interpreted between them.
"""

from socks_tunnel.supervisor.routing import RoutedSession


class WorkerMessages:
    """Knows the sessions by their numbers, and which worker it is for."""

    def __init__(self, sessions: dict[int, RoutedSession], index: int) -> None:
        self._sessions = sessions
        self._index = index

    def take(self, session: int, bodies: list[memoryview]) -> None:
        """Sends tunnel messages of the worker. Raises :class:`RemoteProtocolError`."""
        found = self._sessions.get(session)
        worker = None if found is None else found.workers.get(self._index)
        # Without one of them, the session ended while the messages were under way.
        if found is not None and worker is not None:
            found.from_worker(worker, bodies)
