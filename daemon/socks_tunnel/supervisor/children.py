"""The children in the slots of the process table: the workers and the exporter."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from socks_tunnel.config.settings import Log
from socks_tunnel.ops import metrics as ops_metrics
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.ipc import (
    Answer,
    Ask,
    Attached,
    Configure,
    Control,
    Demand,
    DialFailed,
    DialsDone,
    Drain,
    Drained,
    Kill,
    Probed,
    ReadyState,
    Reload,
    Settle,
    Settled,
)
from socks_tunnel.supervisor.launching import PYTHON, Launcher
from socks_tunnel.supervisor.listeners import Listener
from socks_tunnel.supervisor.processes import Slot
from socks_tunnel.supervisor.router import Router, WorkerRoutes

_log = logging.getLogger(__name__)
_bugs = BugLog()

WORKER_COMMAND: Final = (*PYTHON, "socks_tunnel_workers")
EXPORTER_COMMAND: Final = (*PYTHON, "socks_tunnel.exporter")

METRICS_VARIABLE: Final = "SOCKS_TUNNEL_METRICS_DIR"
"""The variable that tells a worker the directory for the files of its metrics."""

QUESTIONS_MAX: Final = 4
"""Questions of the exporter that are answered at a time. Further ones get an empty answer."""

SETTLE_GRACE: Final = 1.0
"""Seconds that a worker has to answer after its clients' time is over."""

STATS_PENDING_MAX: Final = 64
"""Questions that one worker may have to answer at a time. Further ones are refused."""


class WorkerSlot(Slot):
    """One worker.

    `configuration` returns the message that configures the worker. `on_unbootable` is called with a
    sentence and the exit status if the worker cannot be started at all.
    """

    def __init__(
        self,
        index: int,
        *,
        router: Router,
        metrics: ops_metrics.Metrics,
        metrics_directory: Path,
        listeners: Sequence[Listener],
        log: Log,
        configuration: Callable[[], Configure],
        on_unbootable: Callable[[str, int | None], None],
        command: Sequence[str] = WORKER_COMMAND,
        launcher: Launcher | None = None,
    ) -> None:
        super().__init__(f"worker {index}", launcher=launcher)
        self.index = index
        self.drained = asyncio.Event()
        """Set when a worker that was told to drain has no flow left, or has died."""
        self._router = router
        self._metrics = metrics
        self._metrics_directory = metrics_directory
        self._listeners = listeners
        self.log = log
        self._configuration = configuration
        self._report_unbootable = on_unbootable
        self._command = command
        self._configured: object = None
        """The channel on which the worker was sent its configuration."""
        self._routes = WorkerRoutes()
        self._settling: asyncio.Future[int] | None = None
        self._questions: dict[int, tuple[list[Any], asyncio.Future[list[Any]]]] = {}
        self._last_question = 0

    def command(self, ipc_fd: int) -> Sequence[str]:
        """Returns the command line of a worker with this index and the shared listening sockets."""
        return (
            *self._command,
            f"--index={self.index}",
            f"--ipc-fd={ipc_fd}",
            f"--listen-fds={','.join(str(fd) for fd in self.inherited_fds())}",
            f"--log-level={self.log.level}",
            f"--log-format={self.log.format}",
        )

    def environment(self) -> dict[str, str]:
        """Returns the variable with the directory for metrics."""
        return {METRICS_VARIABLE: str(self._metrics_directory)}

    def inherited_fds(self) -> Sequence[int]:
        """Returns the descriptors of the listening sockets, which all workers share."""
        return [listener.socket.fileno() for listener in self._listeners]

    def on_hello(self) -> None:
        """Configures the worker."""
        assert self.channel is not None
        self.channel.send_control(0, self._configuration())
        self._configured = self.channel

    def on_ready(self) -> None:
        """Lets the worker take flows."""
        assert self.channel is not None
        self._routes = self._router.worker_up(self.index, self.channel)
        self.channel.hand_messages_to(self._routes.from_worker)
        self._metrics.workers.set(self._router.workers)
        _log.debug("%s is ready (pid %d)", self.name, self.pid or 0)

    def on_lost(self) -> None:
        """Tells the peers that the worker's flows have ended, and forgets the worker's state."""
        closed = self._router.worker_down(self.index)
        self._routes = WorkerRoutes()
        self._metrics.workers.set(self._router.workers)
        ops_metrics.slot_died(self._metrics_directory, f"worker-{self.index}")
        self.drained.set()
        questions, self._questions = self._questions, {}
        for _, answer in questions.values():
            if not answer.done():
                answer.set_exception(ConnectionError(f"{self.name} ended"))
        if closed:
            _log.warning("%d flows ended with %s; their peers were told", closed, self.name)

    def on_unbootable(self, reason: str, status: int | None) -> None:
        """Reports it to the instance, which cannot start without its workers."""
        self._report_unbootable(reason, status)

    def on_restart(self) -> None:
        """Counts the restart."""
        self._metrics.worker_restarts_total.inc()

    def on_messages(self, session: int, messages: list[memoryview]) -> None:
        """Passes tunnel messages to their session."""
        self._routes.from_worker(session, messages)

    def on_control(self, session: int, message: Control) -> None:
        """Takes messages about sessions and drains, and answers to :meth:`ask`."""
        match message:
            case Attached():
                self._routes.attached(session, message)
            case Demand(flows=flows):
                self._routes.demanded(session, flows)
            case DialFailed():
                self._routes.dial_failed(session, message)
            case DialsDone():
                self._routes.dials_done(message)
            case Probed():
                self._routes.probed(message)
            case Drained():
                self.drained.set()
            case Settled(waiting=waiting) if self._settling is not None:
                if not self._settling.done():
                    self._settling.set_result(waiting)
            case Answer():
                self._answered(message)
            case _:
                super().on_control(session, message)

    def on_bug(self, session: int, message: Control | None, error: Exception) -> None:
        """Closes the link of the session, so that the resume repeats the lost messages.

        A lost answer or report does no harm. Any other message without a session ends the worker.
        """
        self._metrics.protocol_errors_total.labels("bug").inc()
        if session:
            self._routes.met_bug(session)
        elif not isinstance(message, Answer | DialsDone | Probed):
            super().on_bug(session, message, error)

    @property
    def retiring(self) -> bool:
        """Whether it takes no new flows, and is not started again once it has ended."""
        return self._retired

    def drain(self) -> None:
        """Tells the worker to accept nothing new and to report the end of its last flow.

        If it dies meanwhile, it is not started again.
        """
        if self.channel is None or not self.running:
            self.drained.set()
        else:
            self.drained.clear()
            self.channel.send_control(0, Drain())
        self.retire()

    async def settle(self, seconds: float) -> int:
        """Makes the worker refuse new clients. Returns how many still wait after `seconds`.

        Returns 0 if the worker does not answer within :data:`SETTLE_GRACE` after that.
        """
        if self.channel is None or not self.running:
            return 0
        self._settling = asyncio.get_running_loop().create_future()
        self.channel.send_control(0, Settle(seconds))
        done, _ = await asyncio.wait([self._settling], timeout=seconds + SETTLE_GRACE)
        return self._settling.result() if done else 0

    def reload(self, configuration: dict[str, Any]) -> None:
        """Sends the worker a changed configuration, also if it has one and is not ready yet."""
        if self.channel is not None and (self.running or self._configured is self.channel):
            self.channel.send_control(0, Reload(configuration))

    async def ask(self, what: str, *, limit: int = -1, by: str = "") -> list[Any]:
        """Asks the worker for `status` (one map) or `connections` (a row for each flow).

        With `limit` and `by`, it returns only that many flows: those with the highest `rate`,
        `total` or `age`. Raises :class:`ConnectionError` if the worker is not running, has too many
        questions, or ends before it has answered.
        """
        return await self._question(lambda number: Ask(number, what, limit, by))

    async def kill_flow(self, peer: str, conn_id: int) -> list[Any]:
        """Ends a flow; returns its row, or nothing if the worker has no such flow.

        Raises :class:`ConnectionError` as :meth:`ask` does.
        """
        return await self._question(lambda number: Kill(number, peer, conn_id))

    async def _question(self, make: Callable[[int], Control]) -> list[Any]:
        if self.channel is None or not self.running or len(self._questions) >= STATS_PENDING_MAX:
            raise ConnectionError(f"{self.name} does not take questions at the moment")
        self._last_question += 1
        number = self._last_question
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._questions[number] = [], answer
        self.channel.send_control(0, make(number))
        try:
            return await answer
        finally:
            self._questions.pop(number, None)

    def _answered(self, answer: Answer) -> None:
        question = self._questions.get(answer.number)
        if question is None:
            return  # the asker has given up
        parts, future = question
        parts.extend(answer.rows)
        if not answer.more and not future.done():
            future.set_result(parts)


class ExporterSlot(Slot):
    """The exporter. Its failures never end the instance.

    Its listening socket belongs to the supervisor, so no scrape is refused while the exporter is
    restarted. `hosts` are the host names that requests may use besides addresses. `overview`
    returns the contents of the status page, and is called while a page is open. `routes` returns
    the routes in force for a PAC file: one row, or none on an endpoint.
    """

    def __init__(
        self,
        listener: Listener,
        *,
        metrics_directory: Path,
        log: Log,
        hosts: Sequence[str] = (),
        overview: Callable[[], Awaitable[dict[str, Any]]] | None = None,
        routes: Callable[[], list[dict[str, Any]]] | None = None,
        command: Sequence[str] = EXPORTER_COMMAND,
        launcher: Launcher | None = None,
    ) -> None:
        super().__init__("the exporter", boot_attempts=None, launcher=launcher)
        self._overview = overview
        self._routes = routes
        self._answering = 0
        self._listener = listener
        self._hosts = hosts
        self._metrics_directory = metrics_directory
        self.log = log
        self._command = command

    def command(self, ipc_fd: int) -> Sequence[str]:
        """Returns the command line of the exporter with its listening socket."""
        return (
            *self._command,
            f"--ipc-fd={ipc_fd}",
            f"--listen-fd={self._listener.socket.fileno()}",
            f"--metrics-dir={self._metrics_directory}",
            f"--hosts={','.join(self._hosts)}",
            f"--log-level={self.log.level}",
            f"--log-format={self.log.format}",
        )

    def inherited_fds(self) -> Sequence[int]:
        """Returns the descriptor of the listening socket."""
        return [self._listener.socket.fileno()]

    def on_lost(self) -> None:
        """Removes the gauges that the ended exporter has left."""
        ops_metrics.slot_died(self._metrics_directory, "exporter")

    def on_control(self, session: int, message: Control) -> None:
        """Takes the questions of the exporter."""
        if isinstance(message, Ask):
            spawn("answer the exporter", self._answer(message))
        else:
            super().on_control(session, message)

    async def _answer(self, question: Ask) -> None:
        rows: list[dict[str, Any]] = []
        if question.what == "routes" and self._routes:
            rows = self._routes()
        elif question.what == "overview" and self._overview and self._answering < QUESTIONS_MAX:
            self._answering += 1
            try:
                rows = [await self._overview()]
            except Exception as error:  # noqa: BLE001 - a bug in the page must not end the exporter
                _bugs.tell(_log, "the status page gets no answer", error)
            finally:
                self._answering -= 1
        if self.channel is not None:
            self.channel.send_control(0, Answer(question.number, rows, more=False))

    def push_state(self, reason: str | None) -> None:
        """Tells the exporter that the instance is not ready for `reason`, or is ready (None)."""
        if self.channel is not None and self.running:
            self.channel.send_control(0, ReadyState(reason))
