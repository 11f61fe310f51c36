"""Probes: asks a worker at intervals whether each peer of a route reaches the route's target.

No sockets; time comes in as `now`.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from socks_tunnel.ops.recent import without_destinations
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.failover import UNREACHED
from socks_tunnel.protocol.ipc import Probe
from socks_tunnel.protocol.settings import RouteSettings
from socks_tunnel.supervisor.ports import WorkerPort

_log = logging.getLogger(__name__)

FORGOTTEN_AFTER: Final = 10.0
"""Seconds after which a missing answer is given up: its worker has ended."""

REACHED: Final = frozenset({CloseReason.ORDERLY, CloseReason.CONNECTION_REFUSED})
"""Outcomes that show that the target has answered: it was connected, or it refused."""


@dataclass(frozen=True, slots=True)
class _Asked:
    route: str
    peer: str
    target: str
    at: float


class Prober:
    """The probes of all routes. `told` is called with route, peer and failure of each that ends."""

    def __init__(self, told: Callable[[str, str, str | None], None]) -> None:
        self._told = told
        self._last_number = 0
        self._asked: dict[int, _Asked] = {}
        self._due: dict[tuple[str, str], float] = {}
        self._warned: set[tuple[str, str]] = set()

    def tick(
        self,
        routes: list[RouteSettings],
        sessions: Mapping[str, int],
        workers: Mapping[int, WorkerPort],
        now: float,
    ) -> None:
        """Starts the probes that are due. Called once a second.

        `sessions` has the number of the session with each peer that can transmit.
        """
        for number, asked in list(self._asked.items()):
            if now - asked.at > FORGOTTEN_AFTER:
                del self._asked[number]
        if not workers:
            return
        worker = workers[min(workers)]
        under_way = {(asked.route, asked.peer) for asked in self._asked.values()}
        probed: set[tuple[str, str]] = set()
        for route in routes:
            if route.probe is None or not route.failures:
                continue
            for peer in route.peers:
                key = route.name, peer
                probed.add(key)
                if peer not in sessions or key in under_way or now < self._due.get(key, now):
                    continue
                self._due[key] = now + route.probe_interval
                self._last_number = self._last_number % 0xFFFF_FFFF + 1
                host, port = route.probe
                self._asked[self._last_number] = _Asked(route.name, peer, f"{host}:{port}", now)
                worker.send_control(sessions[peer], Probe(self._last_number, host, port))
        self._due = {key: due for key, due in self._due.items() if key in probed}
        self._warned &= probed

    def answered(self, number: int, reason: int) -> None:
        """Takes a worker's answer."""
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        key = asked.route, asked.peer
        if reason in REACHED:
            self._told(asked.route, asked.peer, None)
        elif reason in UNREACHED:
            why = CloseReason(reason).name.lower().replace("_", " ")
            self._told(asked.route, asked.peer, f"{asked.target}: {why}")
        elif reason == CloseReason.NOT_ALLOWED and key not in self._warned:
            self._warned.add(key)
            _log.warning(
                "route %s: the policy of %s does not allow the probe of %s, so the probe says "
                "nothing about that peer; allow it there, or name another target",
                asked.route,
                asked.peer,
                asked.target,
                extra=without_destinations(
                    f"route {asked.route}: the policy of {asked.peer} does not allow the probe"
                ),
            )
        # Any other reason, such as a limit or a lost link, says nothing about the target.
