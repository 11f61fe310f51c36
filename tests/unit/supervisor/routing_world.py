"""A router with workers and links that only take down what they are told. Its clock is a number."""

from collections.abc import Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry

from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.errors import LocalProtocolError
from socks_tunnel.protocol.ipc import (
    Attach,
    Attached,
    Control,
)
from socks_tunnel.protocol.messages import (
    Message,
    OpenConnection,
    Resume,
    decode,
    mix32,
)
from socks_tunnel.supervisor.ports import LinkTerms
from socks_tunnel.supervisor.router import Router, WorkerRoutes
from socks_tunnel.supervisor.routing import (
    RoutedSession,
)

C = TypeVar("C")


def terms(*, session: bytes = b"s" * 16, resume: bool = False, rank: int = 0) -> LinkTerms:
    features = ("udp", "bind", "resume") if resume else ("udp", "bind")
    return LinkTerms(session, 262_144, 65_529, 300, features, resume, rank)


class FakeWorker:
    """A worker that answers each attach with the rows that it was given."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, list[bytes]]] = []
        self.controls: list[tuple[int, Control]] = []
        self.paused = False
        self.buffered = 0
        self.urgent = 0
        self.overtaking: list[bytes] = []
        self.routes: WorkerRoutes | None = None
        self.rows: list[list[int]] = []
        self.silent = False

    @property
    def messages(self) -> list[tuple[int, bytes]]:
        return [(session, message) for session, batch in self.batches for message in batch]

    def send_messages(self, session: int, messages: Sequence[bytes]) -> None:
        self.batches.append((session, list(messages)))

    def send_urgent(self, session: int, messages: Sequence[bytes]) -> None:
        self.overtaking += messages
        self.urgent += sum(map(len, messages))

    def send_control(self, session: int, message: Control) -> None:
        self.controls.append((session, message))
        if isinstance(message, Attach) and not self.silent:
            self.answer(session)

    def answer(self, session: int) -> None:
        if self.routes is not None:
            self.routes.attached(session, Attached(self.rows, last=True))

    def told(self, kind: type[C]) -> list[C]:
        return [message for _, message in self.controls if isinstance(message, kind)]


class FakeLink:
    """A link that keeps what it is given, by calls."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.resumes: list[Resume] = []
        self.rtt: float | None = None
        self.refuses: str | None = None
        """Why it takes no message."""

    def send_many(self, messages: list[bytes]) -> None:
        if self.refuses is not None:
            raise LocalProtocolError(self.refuses)
        self.batches.append(messages)

    def send_resume(self, resume: Resume) -> None:
        self.resumes.append(resume)

    @property
    def sent(self) -> list[bytes]:
        return [message for batch in self.batches for message in batch]

    @property
    def decoded(self) -> list[Message]:
        return [decode(message) for message in self.sent]


class Setup:
    """A router, its workers, and a link to the peer `office`."""

    def __init__(
        self, *, opens: bool, count: int = 2, flows_per_worker: int = 1000, resume: bool = False
    ) -> None:
        self.now = 1000.0
        self.registry = CollectorRegistry(auto_describe=True)
        self.abuses: list[str] = []
        self.router = Router(
            opens=opens,
            worker_count=count,
            flows_per_worker=flows_per_worker,
            metrics=Metrics(self.registry),
            on_abuse=lambda link, reason: self.abuses.append(f"{link.session.peer}: {reason}"),
            clock=lambda: self.now,
            resume_timeout=60.0 if resume else 0.0,
        )
        self.workers = [FakeWorker() for _ in range(count)]
        for index in range(count):
            self._up(index)
        self.resume = resume
        self.relink()

    def relink(self) -> None:
        """Another link of the peer comes up."""
        self.port = FakeLink()
        self.link = self.router.attach(self.port, "office", terms(resume=self.resume))
        self.settle()

    def settle(self) -> None:
        """Lets the workers answer what they were asked while they had no routes yet."""
        for worker in self.workers:
            if not worker.silent:
                worker.answer(self.session.number)

    def _up(self, index: int) -> None:
        worker = self.workers[index]
        worker.routes = WorkerRoutes(self.router, index)
        self.router.worker_up(index, worker)

    @property
    def session(self) -> RoutedSession:
        return self.link.session

    def restart(self, index: int) -> None:
        self.workers[index] = FakeWorker()
        self._up(index)

    def worker_of(self, conn_id: int) -> int:
        return mix32(conn_id ^ mix32(self.session.number)) % len(self.workers)

    def say(self, index: int, message: bytes) -> None:
        routes = self.workers[index].routes
        assert routes is not None
        routes.from_worker(self.session.number, [memoryview(message)])

    def hear(self, *messages: bytes) -> None:
        """The peer sends messages, in one batch."""
        self.link.messages(list(messages))

    def total(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"socks_tunnel_{name}_total", labels) or 0.0


def endpoint(count: int = 2, flows_per_worker: int = 1000) -> Setup:
    return Setup(opens=False, count=count, flows_per_worker=flows_per_worker)


def gateway(count: int = 2) -> Setup:
    return Setup(opens=True, count=count)


def open_message(conn_id: int) -> bytes:
    return OpenConnection(conn_id, "example.com", 80).encode()


def resuming(*, opens: bool = True, count: int = 2) -> Setup:
    return Setup(opens=opens, count=count, resume=True)
