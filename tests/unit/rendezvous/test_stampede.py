"""All clients of a service come back at once, in simulated time: whether all of them come in."""

import heapq
import random
from dataclasses import dataclass, field

import pytest

from socks_tunnel.rendezvous import limits
from socks_tunnel.rendezvous.limits import Door, Ticket
from socks_tunnel.supervisor.backoff import Backoff
from socks_tunnel.supervisor.carriers import FIRST_DELAY, LONGEST_DELAY

STEP = 0.05
PROOF_TIMEOUT = 10.0
"""That of the service, which is not loaded here."""


@dataclass
class Service:
    """A service that lets in `capacity` connections a second, and works on all that wait at once.

    Each client needs `trip` seconds for its round trips besides.
    """

    capacity: float
    trip: float = 0.0
    door: Door = field(default_factory=Door)
    now: float = 0.0
    proved: int = 0

    def __post_init__(self) -> None:
        self.due: list[tuple[float, int]] = []
        """When each client tries again."""
        self.delays: list[Backoff] = []
        self.work: dict[Ticket, float] = {}
        self.idle: dict[Ticket, None] = {}
        """Strangers' connections, which say nothing."""

    def come_back(self, number: int) -> None:
        """Has so many clients lose their connections now."""
        uniform = random.Random(1).uniform
        self.delays = [
            Backoff(FIRST_DELAY, LONGEST_DELAY, jitter=True, uniform=uniform) for _ in range(number)
        ]
        self.due = [(delay.next(), client) for client, delay in enumerate(self.delays)]
        heapq.heapify(self.due)

    def flood(self, rate: int) -> None:
        """Has strangers come for the time of one step, each from another address."""
        for _ in range(int(rate * STEP)):
            made: list[Ticket] = []

            def abort(made: list[Ticket] = made) -> None:
                self.idle.pop(made[0])

            ticket = self.door.admit("", abort, self.now)
            if ticket is not None:
                made.append(ticket)
                self.idle[ticket] = None
        for ticket in [t for t in self.idle if self.now - t.at > PROOF_TIMEOUT]:
            self.door.release(ticket)
            del self.idle[ticket]

    def step(self) -> None:
        self.now += STEP
        while self.due and self.due[0][0] <= self.now:
            self._try(heapq.heappop(self.due)[1])
        share = self.capacity * STEP / max(1, len(self.work))
        for ticket in list(self.work):
            self.work[ticket] += share
            if self.work[ticket] >= 1 and self.now - ticket.at >= self.trip:
                del self.work[ticket]
                self.door.proved(ticket, self.now)
                self.proved += 1
            elif self.now - ticket.at > PROOF_TIMEOUT:
                self.door.release(ticket)
                ticket.abort()

    def _try(self, client: int) -> None:
        made: list[Ticket] = []

        def again() -> None:
            heapq.heappush(self.due, (self.now + self.delays[client].next(), client))

        def abort() -> None:
            self.work.pop(made[0])
            again()

        ticket = self.door.admit("", abort, self.now)
        if ticket is None:
            again()
            return
        made.append(ticket)
        self.work[ticket] = 0.0


@pytest.mark.parametrize("capacity", [100, 200, 400])
def test_a_slow_service_lets_in_all_its_clients(capacity: float) -> None:
    """Slower than connections come: it has no time for work that is thrown away."""
    service = Service(capacity)
    service.come_back(3000)
    while service.proved < 3000:
        service.step()
        assert service.now < 2 * 3000 / capacity + 30, service.door.counts
    assert len(service.door) == 0


@pytest.mark.parametrize("trip", [1.2, 2.0, 4.0])
def test_clients_with_long_round_trips_come_in_too(trip: float) -> None:
    service = Service(5000, trip)
    service.come_back(3000)
    while service.proved < 3000:
        service.step()
        assert service.now < 120, service.door.counts


@pytest.mark.parametrize("rate", [300, 1000])
def test_a_flood_of_idle_connections_keeps_nobody_out_for_long(rate: int) -> None:
    """Before, during and after it, each of a hundred clients comes in."""
    service = Service(1000, 0.3)
    while service.now < 60:
        service.flood(rate)
        service.step()
    assert len(service.idle) == limits.UNPROVED_MAX
    service.come_back(100)
    began = service.now
    service.due = [(began + delay, client) for delay, client in service.due]
    heapq.heapify(service.due)
    while service.proved < 100:
        service.flood(rate)
        service.step()
        assert service.now < began + 240, (service.proved, service.door.counts)
