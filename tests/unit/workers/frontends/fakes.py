"""An event loop and sockets that do what the test says, and the real session of a worker on them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

from socks_tunnel.config.for_workers import worker_settings
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.ipc import Attach, Control
from socks_tunnel.protocol.messages import Answer, Message, decode
from socks_tunnel.protocol.settings import WorkerSettings
from socks_tunnel_workers.frontends.asking import Asker
from socks_tunnel_workers.frontends.clients import Clients
from socks_tunnel_workers.frontends.routing import Routing
from socks_tunnel_workers.relay.session import RelayServices, WorkerSession
from socks_tunnel_workers.services import Account, Counters, Notices, Settings
from support.configs import checked


class Timer:
    """What `call_later` gives."""

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[object, ...]
    ) -> None:
        self.when = when
        self.callback = callback
        self.args = args
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Loop:
    """An event loop without a selector and without a clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers: list[Timer] = []
        self.readers: dict[object, Callable[[], object]] = {}
        self.writers: dict[object, Callable[[], object]] = {}

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[..., object], *args: object) -> Timer:
        timer = Timer(self.now + delay, callback, args)
        self.timers.append(timer)
        return timer

    def call_soon(self, callback: Callable[..., object], *args: object) -> Timer:
        return self.call_later(0, callback, *args)

    def add_reader(self, sock: object, callback: Callable[..., object], *args: object) -> None:
        self.readers[sock] = lambda: callback(*args)

    def remove_reader(self, sock: object) -> bool:
        return self.readers.pop(sock, None) is not None

    def add_writer(self, sock: object, callback: Callable[..., object], *args: object) -> None:
        self.writers[sock] = lambda: callback(*args)

    def remove_writer(self, sock: object) -> bool:
        return self.writers.pop(sock, None) is not None

    def advance(self, seconds: float) -> None:
        """Let time pass, and the timers go off that are due."""
        end = self.now + seconds
        while True:
            due = [t for t in self.timers if not t.cancelled and t.when <= end]
            if not due:
                break
            first = min(due, key=lambda timer: timer.when)
            self.timers.remove(first)
            self.now = max(self.now, first.when)
            first.callback(*first.args)
        self.now = end


class Sock:
    """A connected socket: what `arrives` can be read, what was sent is in `sent`."""

    def __init__(self, loop: Loop, *, local: tuple[Any, ...] = ("127.0.0.1", 1080)) -> None:
        self.loop = loop
        self.local = local
        self.family = socket.AF_INET6 if len(local) == 4 else socket.AF_INET
        self.incoming: list[bytes | OSError] = []
        self.sent = bytearray()
        self.room = 1 << 30
        self.closed = False
        self.reset = False
        self.ended = False
        self.error = 0

    def arrives(self, data: bytes) -> None:
        """Bytes came; empty for the end of file."""
        self.incoming.append(data)
        self.turn()

    def is_reset(self) -> None:
        self.error = errno.ECONNRESET
        self.incoming.append(ConnectionResetError(errno.ECONNRESET, "reset"))
        self.turn()

    def turn(self) -> None:
        """Let whoever watches this socket read it, as long as there is something."""
        while self.incoming and self in self.loop.readers:
            before = list(self.incoming)
            self.loop.readers[self]()
            if self.incoming == before and self in self.loop.readers:
                assert before[0] == b"", "the reader does not read"
                break

    def recv(self, size: int) -> bytes:
        assert not self.closed
        if not self.incoming:
            raise BlockingIOError
        first = self.incoming[0]
        if isinstance(first, OSError):
            raise first
        if not first:
            return b""  # an end of file stays
        del self.incoming[0]
        if len(first) > size:
            self.incoming.insert(0, first[size:])
        return first[:size]

    def send(self, data: bytes | bytearray | memoryview) -> int:
        assert not self.closed
        if self.error:
            raise ConnectionResetError(self.error, "reset")
        if not self.room:
            raise BlockingIOError
        count = min(len(data), self.room)
        self.room -= count
        self.sent += bytes(data)[:count]
        return count

    def sendmsg(self, pieces: list[bytes | memoryview], *_: object) -> int:
        return self.send(b"".join(pieces))

    def takes(self, count: int) -> None:
        """The peer has read: there is room for more."""
        self.room += count
        if self.room and self in self.loop.writers:
            self.loop.writers[self]()

    def shutdown(self, how: int) -> None:
        assert how == socket.SHUT_WR
        self.ended = True

    def setsockopt(self, level: int, option: int, value: object) -> None:
        self.reset = (level, option) == (socket.SOL_SOCKET, socket.SO_LINGER) or self.reset

    def getsockopt(self, level: int, option: int) -> int:
        assert (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR)
        return self.error

    def getsockname(self) -> tuple[Any, ...]:
        return self.local

    def setblocking(self, flag: bool) -> None:
        assert not flag

    def close(self) -> None:
        assert self not in self.loop.readers
        assert self not in self.loop.writers
        self.closed = True


class Wire:
    """The worker's end of the IPC stream: what flows transmit is decoded here."""

    paused = False

    def __init__(self) -> None:
        self.sent: list[Message] = []

    def send_message(self, session: int, message: bytes) -> None:
        self.sent.append(decode(message))

    def send_urgent(self, session: int, messages: Sequence[bytes]) -> None:
        self.sent += [decode(message) for message in messages]

    def send_pieces(self, session: int, header: bytes, payload: bytes | memoryview) -> None:
        self.sent.append(decode(header + bytes(payload)))

    def send_control(self, session: int, message: object) -> None:
        pass

    def take(self) -> list[Message]:
        sent, self.sent = self.sent, []
        return sent


class Recorder(Asker):
    """A front end that notes its answers. `alive` is whether its client still is."""

    def __init__(self) -> None:
        self.answers: list[tuple[object, ...]] = []
        self.alive = True

    def opened(self, bound: HostPort) -> bool:
        self.answers.append(("opened", str(bound)))
        return self.alive

    def listening(self, bound: HostPort) -> bool:
        self.answers.append(("listening", str(bound)))
        return self.alive

    def associated(self, bound: HostPort) -> bool:
        self.answers.append(("associated", bound))
        return self.alive

    def resolved(self, answers: tuple[Answer, ...]) -> None:
        self.answers.append(("resolved", *(answer.host for answer in answers)))

    def failed(self, reason: int, sentence: str) -> None:
        assert sentence
        self.answers.append(("failed", CloseReason(reason)))

    def close(self) -> None:
        self.answers.append(("close",))


class Gateway:
    """A gateway's worker as its front ends see it."""

    def __init__(self, **tables: object) -> None:
        self.loop = Loop()
        self.settings = Settings(self.config(**tables))
        self.counters = Counters()
        self.warnings: list[str] = []
        self.metrics = Metrics()
        self.memory = Account(self.settings.config.limits.memory_per_worker)
        self.full = False
        self.wires: dict[WorkerSession, Wire] = {}
        notices = Notices(self.loop.time)
        self.notices = notices
        self.sessions: dict[int, WorkerSession] = {}
        self.beside: list[list[list[float]]] = []
        """What the supervisor says is to be added to the flows of sessions."""
        self.told: list[tuple[int, Control]] = []
        routing = Routing(
            self.settings,
            self.sessions,
            self.counters,
            notices,
            lambda session, message: self.told.append((session, message)),
        )
        self.clients = Clients(
            cast("Any", self.loop),
            self.settings,
            self.counters,
            notices,
            self.metrics,
            self.memory,
            routing,
            lambda: self.full,
        )

    @staticmethod
    def config(**tables: object) -> WorkerSettings:
        return worker_settings(
            checked(
                {
                    "role": "gateway",
                    "source": Path("/gateway.toml"),
                    "identity": {"private_key_file": "/gateway.key"},
                    **tables,
                }
            )
        )

    def session(
        self,
        *,
        peer: str = "office",
        window: int = 262_144,
        features: tuple[str, ...] = ("udp", "bind", "resume", "resolve"),
    ) -> WorkerSession:
        """A new session with a link, which takes the new flows of the first route from now on."""
        wire = Wire()
        services = RelayServices(
            channel=cast("Any", wire),
            loop=cast("Any", self.loop),
            settings=self.settings,
            counters=self.counters,
            notices=self.notices,
            memory=self.memory,
            metrics=self.metrics,
            flow_left=lambda: None,
            relieve=lambda: None,
        )
        number = 7 + len(self.wires)
        session = WorkerSession(services, number, peer, open_from_peer=None, index=0)
        session.attach(
            Attach(
                window=window, max_data=65_529, idle_udp=300, features=list(features),
                credit=1 << 20, resume=False,
            )
        )  # fmt: skip
        session.resumed([], last=True)
        self.wires[session] = wire
        self.sessions[number] = session
        self.prefers([session])
        return session

    def prefers(self, *routes: list[WorkerSession], others: tuple[WorkerSession, ...] = ()) -> None:
        """The supervisor says which sessions each route leads to; `others` are of all of them."""
        rest = [session.number for session in others]
        table = [[[s.number for s in route], rest] for route in routes]
        self.clients.set_targets(table, self.beside or [[] for _ in routes])

    def answer(self, session: WorkerSession, *messages: Message) -> None:
        """The endpoint sends these."""
        session.receive([memoryview(message.encode()) for message in messages])  # type: ignore[union-attr]  # no unknown ones

    def sent(self, session: WorkerSession) -> list[Message]:
        """What was transmitted since the last call."""
        return self.wires[session].take()

    def end(self, session: WorkerSession) -> None:
        """The session is over, as the worker does it."""
        session.detach()
        del self.sessions[session.number]
        self.clients.routing.forget(session)
        session.end(CloseReason.RESUME_FAILED, tell_peer=False)

    def counted(self, metric: str, *labels: str) -> int:
        return self.counters.pending(metric, *labels)
