"""One running instance: its links, its children, and its reactions to signals and requests.

These are its states. All transitions are in :class:`Instance`::

    starting --all workers ready, links begun--> ready --SIGTERM--> draining --no flow left,
       |                                                              |        or time is up
       |                                                              |              |
       +-- SIGTERM, or the start         SIGTERM again --(at once)----+              v
           is impossible --------------------------------------------------------> the end

    ready --SIGUSR2, if the installed program can start--> leaving --execve(2)--> the next program

Signal handlers, and tasks that end, only put an event into a queue, which one loop reads.

This file is long because start, drain and end are one state machine, in the order of its life.
Other modules do the rest: children.py and launching.py deal with child processes, reloading.py with
reloads, departure.py and arrival.py with the replacement of the program, and report.py with
reports.
"""

import asyncio
import logging
import os
import signal
import socket
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import socks_tunnel
from socks_tunnel.config import paths
from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.for_workers import dump
from socks_tunnel.config.settings import Config, listener_text
from socks_tunnel.ops import audit
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops import metrics as ops_metrics
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.notify import Notifier
from socks_tunnel.ops.process import KILL_TIMEOUT, give_back_freed, has_come_up
from socks_tunnel.ops.recent import RecentProblems
from socks_tunnel.ops.tasks import LagMeter, spawn
from socks_tunnel.peer.quiet import quiet_loop_exceptions, set_library_log_level
from socks_tunnel.peer.select import aiortc_version
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.ipc import Configure, encode_control
from socks_tunnel.signaling.nonces import NonceFile
from socks_tunnel.supervisor import handover, report
from socks_tunnel.supervisor.answerer import EndpointLinks
from socks_tunnel.supervisor.arrival import inherit, resumed, taken_over
from socks_tunnel.supervisor.binding import Bound, bind, row_of
from socks_tunnel.supervisor.children import (
    EXPORTER_COMMAND,
    WORKER_COMMAND,
    ExporterSlot,
    WorkerSlot,
)
from socks_tunnel.supervisor.control import ControlError, ControlServer, caller
from socks_tunnel.supervisor.departure import depart
from socks_tunnel.supervisor.enroller import OPERATIONS as ENROLMENT
from socks_tunnel.supervisor.enroller import Enroller
from socks_tunnel.supervisor.gateway_links import GatewayLinks
from socks_tunnel.supervisor.launching import Exec, Launcher, Nursery
from socks_tunnel.supervisor.links import Links, software
from socks_tunnel.supervisor.listeners import (
    Address,
    Listener,
    ListenError,
    RemoteListenerError,
)
from socks_tunnel.supervisor.loading import load_enroller, load_identity
from socks_tunnel.supervisor.overview import overview
from socks_tunnel.supervisor.problems import (
    EXIT_BUG,
    EXIT_CANNOT_CREATE,
    EXIT_CONFIG,
    StartError,
)
from socks_tunnel.supervisor.processes import TICK, Slot
from socks_tunnel.supervisor.reload import BY_REPLACING
from socks_tunnel.supervisor.reloading import Reloader
from socks_tunnel.supervisor.requests import drain_timeout, flow_name, selection
from socks_tunnel.supervisor.retiring import retire, worker_indices
from socks_tunnel.supervisor.router import Router
from socks_tunnel.supervisor.routing import AttachedLink

_log = logging.getLogger(__name__)
_bugs = BugLog()

START_TIMEOUT: Final = 90.0
"""Seconds that the workers have to become ready."""

ACKNOWLEDGE_TIMEOUT: Final = 2.0
"""Seconds that workers have to stop accepting before the listening sockets are shut down."""

STOP_TIMEOUT: Final = 5.0
"""Seconds that a child has to end after it was told to."""

CLOSE_TIMEOUT: Final = 15.0
"""Seconds that links and carriers have to close in order. A single link takes at most half of it.
"""

FORCED_CLOSE_TIMEOUT: Final = 0.5
"""Seconds that links have to close when the end is forced."""

DRAIN_EXTENSION: Final = 20.0
"""Seconds for which each second of a drain asks the service manager to go on waiting. The end after
a drain takes less: a child has :data:`STOP_TIMEOUT`, and then the links are closed."""

STATUS_PERIOD: Final = 5
"""Seconds between two updates of the status line for the service manager."""

State = Literal["starting", "ready", "draining", "leaving"]


class _Drain:
    """The event of a request to drain on the control socket."""

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout


class _Leave:
    """The event of a request to replace this program by the installed one, of that version."""

    def __init__(self, version: str) -> None:
        self.version = version


class Instance:
    """One running instance. Made and run once, on the event loop of its process.

    `directory` is its runtime directory, in which the metrics directory exists, and `lock` the
    descriptor of the lock on it. `legacy` is what the previous program has left. Raises
    :class:`StartError`.

    This class has many methods because all transitions of an instance are in one place.
    """

    def __init__(
        self,
        config: Config,
        directory: Path,
        *,
        lock: int = -1,
        legacy: handover.Legacy | None = None,
        worker_command: Sequence[str] = WORKER_COMMAND,
        exporter_command: Sequence[str] = EXPORTER_COMMAND,
    ) -> None:
        identity = load_identity(config)
        self.metrics = ops_metrics.Metrics()
        self.enroller: Enroller | None = None
        if config.role == "endpoint":
            self.enroller = load_enroller(
                config, directory, identity, self._apply_members, self.metrics
            )
            config = self.enroller.extend(config)
        self.config = config
        self.directory = directory
        self.state: State = "starting"
        self.started_at = time.monotonic() if legacy is None else legacy.started_at
        self.upgrades = 0 if legacy is None else legacy.upgrades
        """How often its program was replaced."""
        self.upgrade: dict[str, Any] | None = None
        """The row about the last replacement, for `status`."""
        self.notifier = Notifier(os.environ)
        self.router = Router(
            opens=config.role == "gateway",
            worker_count=config.workers.effective_count,
            flows_per_worker=config.limits.flows_per_worker,
            metrics=self.metrics,
            on_abuse=self._abuse,
            clock=time.monotonic,
            resume_timeout=config.resume_timeout,
            defer=lambda call: asyncio.get_running_loop().call_soon(call),
        )
        links = GatewayLinks if config.role == "gateway" else EndpointLinks
        self.links: Links = links(config, identity, self.router, self.metrics)
        if isinstance(self.links, EndpointLinks):
            self.links.enroller = self.enroller
        nonces = NonceFile(paths.state_directory(directory) / "nonces")
        self.links.verifier.keep_in(nonces, self.links.clock.at_start())
        self.workers: list[WorkerSlot] = []
        self.exporter: ExporterSlot | None = None
        self._lock = lock
        self._legacy = legacy
        self._watchdog: asyncio.Task[None] | None = None
        self._worker_command = worker_command
        self._exporter_command = exporter_command
        self._nursery = Nursery()
        self.metrics.others["nursery"] = lambda: self._nursery.pid
        self._listeners: list[Listener] = []
        self._metrics_listener: Listener | None = None
        self._control = ControlServer(paths.control_socket(directory), self._answer)
        self._events: asyncio.Queue[Any] = asyncio.Queue()
        self._unbootable: asyncio.Future[tuple[str, int | None]] = asyncio.Future()
        self._background: list[asyncio.Task[None]] = []
        self._lag: LagMeter | None = None
        self._starting: asyncio.Task[StartError | None] | None = None
        self._draining: asyncio.Task[None] | None = None
        self._status_line = ""
        self._reloader = Reloader(
            running=lambda: self.config,
            apply=self._apply,
            check=self._check_frame,
            links=self.links,
            enroller=self.enroller,
            metrics=self.metrics,
        )
        self._problems = RecentProblems()
        self._forced = False

    # --- the main loop ------------------------------------------------------------------------

    async def run(self) -> None:
        """Starts, serves, and ends. Raises :class:`StartError`."""
        logging.getLogger().addHandler(self._problems)
        loop = asyncio.get_running_loop()
        quiet_loop_exceptions(loop)
        for number in handover.HELD_SIGNALS:
            loop.add_signal_handler(number, self._events.put_nowait, number)
        handover.take_signals()
        has_come_up()
        try:
            self._starting = spawn("start", self._start())
            self._starting.add_done_callback(self._events.put_nowait)
            await self._serve()
        except BaseException:
            self._forced = True
            raise
        finally:
            await self._end()

    async def _serve(self) -> None:
        """Handles events until it is time to end."""
        while True:
            event = await self._events.get()
            match event:
                case signal.SIGTERM | signal.SIGINT:
                    name = signal.Signals(event).name
                    if self.state != "ready":
                        again = " again" if self.state == "draining" else " while starting"
                        _log.warning("%s%s: ending at once", name, again)
                        self._forced = True
                        return
                    self._begin_drain(name, self.config.drain_timeout)
                case _Drain(timeout=timeout):
                    if self.state == "ready":
                        self._begin_drain("asked to drain", timeout)
                case signal.SIGHUP:
                    spawn("reload", self._reload_on_signal())
                case signal.SIGUSR1:
                    spawn("report", report.log_report(self))
                case signal.SIGUSR2:
                    spawn("upgrade", self._upgrade_on_signal())
                case _Leave(version=version):
                    if self.state == "ready":
                        await self._leave(version)
                case asyncio.Task() if event is self._starting:
                    problem = event.result()
                    if problem is not None:
                        raise problem
                case asyncio.Task():
                    event.result()  # raises the exception of a drain that failed
                    return

    # --- the start ----------------------------------------------------------------------------

    async def _start(self) -> StartError | None:
        """Starts everything; returns the problem if that is not possible, else None."""
        try:
            self._check_frame(self.config)
            self._bind()
            if self._legacy is not None:
                inherit(self._legacy, self.links, self.router)
            await self._start_control()
            self._start_children()
            await self._wait_for_workers()
            await self._start_links()
        except StartError as problem:
            return problem
        self.state = "ready"
        self._status_line = self._make_status_line()
        where = " and ".join(map(listener_text, self.addresses))
        _log.info(
            "ready: %s %s, %s, %d workers%s",
            self.config.role,
            self.config.instance,
            software(),
            self.router.workers,
            f", SOCKS5 on {where}" if where else "",
        )
        self.notifier.ready(self._status_line)
        give_back_freed()
        count = self.router.worker_count
        self._background += [
            spawn(f"retire {slot.name}", retire(self.workers, count, slot)) for slot in self.workers
        ]
        if self._legacy is not None:
            self._background.append(spawn("flows go on", self._flows_go_on(self._legacy)))
            self._legacy = None
        return None

    async def _flows_go_on(self, legacy: handover.Legacy) -> None:
        """Notes how the replacement of the program went, once the flows have resumed."""
        self.upgrade = taken_over(legacy)
        self.upgrade["resumed_after"] = await resumed(legacy, self.router)

    def _check_frame(self, config: Config) -> None:
        """Raises StartError if the workers' part of a configuration is too long for a frame."""
        try:
            encode_control(0, self._worker_configuration(config))
        except ValueError as error:
            raise StartError(
                f"{config.source}: its policies and users are too long to be sent to a worker: "
                f"{error}",
                EXIT_CONFIG,
            ) from None

    def _bind(self) -> None:
        try:
            bound = bind(
                self.config,
                paths.control_socket(self.directory),
                os.environ,
                None if self._legacy is None else self._legacy.bound,
            )
        except RemoteListenerError as error:
            raise StartError(str(error), EXIT_CONFIG) from None
        except ListenError as error:
            raise StartError(str(error), EXIT_CANNOT_CREATE) from None
        self._metrics_listener = bound.metrics
        self._listeners = bound.clients

    async def _start_control(self) -> None:
        try:
            listening = None if self._legacy is None else self._legacy.control
            await self._control.start(
                None if listening is None else socket.socket(fileno=listening)
            )
        except OSError as error:
            raise StartError(
                f"cannot listen on the control socket {paths.control_socket(self.directory)}: "
                f"{error.strerror or error}",
                EXIT_CANNOT_CREATE,
            ) from None

    def _start_children(self) -> None:
        config = self.config
        metrics_directory = paths.metrics_directory(self.directory)
        self.metrics.set_build_info(config.role, aiortc_version())
        self._reloader.started()
        handed = {} if self._legacy is None else self._legacy.workers
        self.workers = [
            WorkerSlot(
                index,
                router=self.router,
                metrics=self.metrics,
                metrics_directory=metrics_directory,
                listeners=self._listeners,
                log=config.log,
                configuration=lambda: self._worker_configuration(self.config),
                on_unbootable=self._worker_cannot_boot,
                command=self._worker_command,
                launcher=self._launcher(self._worker_command, WORKER_COMMAND),
            )
            for index in worker_indices(self.router.worker_count, handed)
        ]
        if self._metrics_listener is not None:
            self.exporter = ExporterSlot(
                self._metrics_listener,
                metrics_directory=metrics_directory,
                log=config.log,
                hosts=config.metrics.hosts,
                overview=partial(overview, self, self._problems),
                routes=partial(report.routes, self),
                command=self._exporter_command,
                launcher=self._launcher(self._exporter_command, EXPORTER_COMMAND),
            )
        for slot in self.workers:
            slot.start(handed.get(slot.index))
        if self.exporter is not None:
            self.exporter.start()
        self._background = [
            spawn("look after children", self._look_after_children()),
            spawn("each second", self._each_second()),
        ]
        self._lag = LagMeter(self.metrics.observe_lag)
        if self.notifier.watchdog_interval is not None:
            self._watchdog = spawn("watchdog", self._feed_watchdog(self.notifier.watchdog_interval))

    def _launcher(self, command: Sequence[str], ours: Sequence[str]) -> Launcher:
        return self._nursery if command == ours else Exec()

    def _worker_cannot_boot(self, reason: str, status: int | None) -> None:
        if not self._unbootable.done():
            self._unbootable.set_result((reason, status))

    async def _wait_for_workers(self) -> None:
        ready = spawn("workers ready", _all(slot.was_ready.wait() for slot in self.workers))
        try:
            either: list[asyncio.Future[Any]] = [ready, self._unbootable]
            await asyncio.wait(either, timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self._unbootable.done():
            reason, status = self._unbootable.result()
            raise StartError(reason, EXIT_CONFIG if status == EXIT_CONFIG else EXIT_BUG)
        late = [slot.name for slot in self.workers if not slot.was_ready.is_set()]
        if late:
            raise StartError(
                f"{' and '.join(late)} did not become ready within {START_TIMEOUT:.0f} s", EXIT_BUG
            )

    async def _start_links(self) -> None:
        try:
            await self.links.start()
        except ConfigError as error:  # a file has changed since the configuration was read
            raise StartError(str(error), EXIT_CONFIG) from None
        except OSError as error:
            signaling = self.config.signaling
            where = signaling.listen if signaling is not None else None
            raise StartError(
                f"signaling.listen: cannot listen on {where}: {error.strerror or error}",
                EXIT_CANNOT_CREATE,
            ) from None

    def _worker_configuration(self, config: Config) -> Configure:
        return Configure(
            self.router.worker_count, dump(config), [row_of(each) for each in self._listeners]
        )

    # --- while it runs ------------------------------------------------------------------------

    @property
    def addresses(self) -> list[Address]:
        """The addresses of the proxy, which serves SOCKS and HTTP clients."""
        return [listener.address for listener in self._listeners if listener.target is None]

    @property
    def metrics_address(self) -> Address | None:
        """The address of the exporter; None if there is none."""
        return None if self._metrics_listener is None else self._metrics_listener.address

    def _slots(self) -> list[Slot]:
        return [*self.workers, *([self.exporter] if self.exporter is not None else [])]

    async def _look_after_children(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            for slot in self._slots():
                with _bugs.going_on(_log, f"a look at {slot.name} met a bug"):
                    slot.tick()

    async def _each_second(self) -> None:
        seconds = 0
        while True:
            with _bugs.going_on(_log, "what is done each second met a bug"):
                self._look(status=seconds % STATUS_PERIOD == 0)
            seconds += 1
            await asyncio.sleep(1.0)

    def _look(self, *, status: bool) -> None:
        if self.exporter is not None:
            self.exporter.push_state(self.why_not_ready())
        if self.state == "draining":
            # A short extension each second, so that systemd ends an instance that hangs in its
            # drain: the watchdog is off once a unit is stopping.
            self.notifier.extend(DRAIN_EXTENSION)
        self.router.tick(time.monotonic())
        self.links.measure()
        if self.enroller is not None:
            self.enroller.tick()
        buffered = self.metrics.buffered_bytes
        buffered.labels("link").set(self.links.buffered)
        buffered.labels("ipc").set(
            sum(slot.channel.buffered for slot in self.workers if slot.channel is not None)
        )
        if status:
            self._tell_status()

    async def _feed_watchdog(self, interval: float) -> None:
        """Feeds systemd's watchdog each `interval` seconds while all workers answer.

        So systemd restarts the instance if a worker hangs for good.
        """
        fed = True
        while True:
            hanging = [slot.name for slot in self.workers if not slot.responsive]
            if not hanging:
                self.notifier.watchdog()
            elif fed:
                _log.warning(
                    "no answer from %s: systemd's watchdog is not fed meanwhile, "
                    "and restarts this service if that goes on",
                    " and ".join(hanging),
                )
            fed = not hanging
            await asyncio.sleep(interval)

    def why_not_ready(self) -> str | None:
        """Returns a sentence that says why no new flow can be served; None if one can."""
        if self.state != "ready":
            return self.state
        wanted = (self.router.worker_count + 1) // 2
        if self.router.workers < wanted:
            return f"{self.router.workers} of {self.router.worker_count} workers are running"
        if self.config.role == "gateway" and not self.links.up():
            return "no link is up"
        return None

    def _make_status_line(self) -> str:
        line = report.status_line(
            self.config.role, self.links, self.router.flows, self.router.workers
        )
        return line if self.state == "ready" else f"{self.state}; {line}"

    def _tell_status(self) -> None:
        line = self._make_status_line()
        if line != self._status_line:
            self._status_line = line
            self.notifier.status(line)

    def _abuse(self, link: AttachedLink, reason: str) -> None:
        self.links.abuse(link, reason)

    # --- requests on the control socket -------------------------------------------------------

    async def _answer(self, request: dict[str, Any]) -> Any:
        if self.state == "leaving":
            raise ControlError("the program is being replaced at the moment; ask again")
        match request["op"]:
            case "status":
                return await report.status(self)
            case "connections":
                return await report.connections(self, **selection(request))
            case "summary":
                return report.summary(self)
            case "diagnosis":
                return report.diagnosis(self, self._problems.rows())
            case "kill":
                return await self._kill(*flow_name(request))
            case "reload":
                try:
                    waiting, replacing = await self._reload()
                except ConfigError as error:
                    raise ControlError(f"the old configuration stays: {error}") from None
                return {"reloaded": True, "needs_restart": waiting, "replacing": replacing}
            case "upgrade":
                version = await self._check_installed()
                self._events.put_nowait(_Leave(version))
                return {
                    "from": socks_tunnel.__version__,
                    "to": version,
                    "upgrades": self.upgrades,
                    "flows": self.router.flows,
                }
            case "drain":
                timeout = drain_timeout(request, self.config.drain_timeout)
                if self.state != "ready":
                    raise ControlError(f"the instance is {self.state}")
                self._events.put_nowait(_Drain(timeout))
                return {"draining": True, "timeout": timeout, "flows": self.router.flows}
            case op if op in ENROLMENT:
                if self.enroller is None:
                    raise ControlError("this instance is a gateway, and hosts join an endpoint")
                return await self.enroller.answer(request)
            case other:
                raise ControlError(f"there is no request '{clip(other)}'")

    async def _kill(self, peer: str, conn_id: int) -> dict[str, Any]:
        row = await report.kill(self, peer, conn_id)
        if row is None:
            raise ControlError(f"there is no open flow {clip(peer, 64)}/{conn_id}")
        who = caller.get()
        audit.killed(
            peer=peer,
            conn_id=conn_id,
            command=row["command"],
            destination=row["destination"],
            uid=who.uid,
            pid=who.pid,
        )
        return row

    # --- reload -------------------------------------------------------------------------------

    async def _reload_on_signal(self) -> None:
        try:
            await self._reload()
        except ConfigError as error:
            for problem in error.problems:
                _log.error("%s", problem)
            _log.error("not reloaded: the old configuration stays")
        except ControlError as error:
            _log.warning("not reloaded: %s", error)

    async def _reload(self) -> tuple[list[str], list[str]]:
        """Reads the configuration again.

        Returns the keys whose changes wait for a restart, and the keys for which the program is
        about to replace itself. Raises :class:`ConfigError`, and :class:`ControlError` if the
        instance is not ready; then nothing has changed.
        """
        if self.state != "ready":
            raise ControlError(f"the instance is {self.state}")
        async with self._reloader.lock:
            self.notifier.reloading()
            try:
                config, waiting = await self._reloader.reload()
            finally:
                self.notifier.ready(self._status_line)
        for warning in config.warnings:
            _log.warning("%s", warning)
        _log.info("reloaded %s", self.config.source)
        replacing = await self._replace_for(waiting)
        waiting = [key for key in waiting if key not in replacing]
        if waiting:
            _log.warning("changes to %s take effect with a restart", ", ".join(waiting))
        return waiting, replacing

    async def _replace_for(self, waiting: Sequence[str]) -> list[str]:
        """Lets the program replace itself if some of the changes in `waiting` need that.

        Returns the keys of these changes; none if it cannot, which is logged.
        """
        keys = sorted(BY_REPLACING.intersection(waiting))
        if not keys or self._lock < 0:
            return []
        try:
            version = await self._check_installed()
        except ControlError as error:
            _log.warning(
                "the program is not replaced for changes to %s: %s", ", ".join(keys), error
            )
            return []
        _log.info("the program replaces itself for changes to %s", ", ".join(keys))
        self._events.put_nowait(_Leave(version))
        return keys

    async def _apply_members(self) -> None:
        await self._reloader.apply_members()

    def _apply(self, config: Config, fields: dict[str, Any]) -> None:
        self.config = config
        ops_logging.set_level(config.log.level)
        set_library_log_level(debug=config.log.level == "debug")
        self.router.resume_timeout = config.resume_timeout
        self.router.flows_per_session = config.limits.flows_per_worker * self.router.worker_count
        for slot in self.workers:
            slot.log = config.log
            slot.reload(fields)
        if self.exporter is not None:
            self.exporter.log = config.log
        self.links.apply(config)

    # --- upgrade ------------------------------------------------------------------------------

    async def _upgrade_on_signal(self) -> None:
        try:
            version = await self._check_installed()
        except ControlError as error:
            _log.error("the program is not replaced: %s", error)
        else:
            self._events.put_nowait(_Leave(version))

    async def _check_installed(self) -> str:
        """Returns the version of the installed program, if it can take this one's place.

        Raises :class:`ControlError` if it cannot; then nothing has changed.
        """
        if self.state != "ready":
            raise ControlError(f"the instance is {self.state}")
        async with self._reloader.lock:
            try:
                signaling = self.config.signaling
                bound = Bound(self._metrics_listener, self._listeners)
                offers = None if signaling is None else signaling.listen
                return await handover.check(self.config.source, handover.served(bound, [offers]))
            except handover.RefusedError as error:
                raise ControlError(
                    f"version {socks_tunnel.__version__} keeps running: {error}"
                ) from None

    async def _leave(self, version: str) -> None:
        """Replaces this program by the installed one. Raises :class:`StartError` if it fails.

        From here on nothing may be sent to the workers: no ping, no credit, no question.
        """
        _log.info(
            "version %s takes the place of %s; %d flows go on with it",
            version,
            socks_tunnel.__version__,
            self.router.flows,
        )
        async with self._reloader.lock:
            self.state = "leaving"
            handover.hold_signals()
            self.notifier.reloading()
            self._stop_background()
            try:
                legacy = await depart(
                    workers=self.workers,
                    exporter=self.exporter,
                    nursery=self._nursery,
                    links=self.links,
                    router=self.router,
                    control=self._control,
                    bound=Bound(self._metrics_listener, self._listeners),
                    lock=self._lock,
                    started_at=self.started_at,
                    upgrades=self.upgrades,
                )
                self.metrics.flush()
                handover.replace_program(legacy)
            except (OSError, ValueError) as error:
                raise StartError(f"the program cannot be replaced: {error}", EXIT_BUG) from error

    def _stop_background(self) -> None:
        for task in self._background:
            task.cancel()
        if self._lag is not None:
            self._lag.cancel()

    # --- the end ------------------------------------------------------------------------------

    def _begin_drain(self, why: str, timeout: float) -> None:
        self.state = "draining"
        _log.info(
            "%s: draining; %d flows have up to %.0f s to end", why, self.router.flows, timeout
        )
        self.notifier.stopping()
        self.notifier.extend(DRAIN_EXTENSION)
        self._tell_status()
        self._draining = spawn("drain", self._drain(timeout))
        self._draining.add_done_callback(self._events.put_nowait)

    async def _drain(self, timeout: float) -> None:  # noqa: ASYNC109 - running out of it is one of two good ends
        self.router.drain()
        self.links.goaway()
        for slot in self.workers:
            slot.drain()
        try:
            async with asyncio.timeout(timeout):
                stopped = await asyncio.gather(
                    *(slot.acknowledged(ACKNOWLEDGE_TIMEOUT) for slot in self.workers)
                )
                # A socket may be shut down only when no worker accepts on it. If a worker does not
                # answer, clients wait until the end instead of being refused.
                accepting = zip(stopped, self.workers, strict=True)
                if all(ok or not slot.running for ok, slot in accepting):
                    for listener in self._listeners:
                        listener.refuse()
                await _all(slot.drained.wait() for slot in self.workers)
        except TimeoutError:
            _log.warning(
                "%d flows are still open after %.0f s: ending them", self.router.flows, timeout
            )
        else:
            _log.info("all flows have ended")

    async def _end(self) -> None:
        """Ends everything that was started: at once if forced, else in order. Bounded in time."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._draining is not None:
            self._draining.cancel()
        self._stop_background()
        if self._watchdog is not None:
            self._watchdog.cancel()
        if self._forced:
            for slot in self._slots():
                slot.kill()
        else:
            # The workers end first, so that their last messages to the peers still have a link.
            await _all(slot.stop(STOP_TIMEOUT) for slot in self.workers)
        await self._nursery.close()
        closing = spawn("close links", self.links.stop("the peer is shutting down"))
        seconds = FORCED_CLOSE_TIMEOUT if self._forced else CLOSE_TIMEOUT
        _, open_still = await asyncio.wait([closing], timeout=seconds)
        if open_still:
            _log.warning(
                "%d links did not close within %g s; their peers find out by themselves",
                len(self.links.links),
                seconds,
            )
        if self.exporter is not None:
            await self.exporter.stop(STOP_TIMEOUT)
        running = {slot.ended: slot.name for slot in self._slots() if slot.ended is not None}
        if running:
            _, left = await asyncio.wait(running, timeout=KILL_TIMEOUT)
            if left:
                _log.error(
                    "%s did not end within %.0f s, and may still run",
                    " and ".join(sorted(running[task] for task in left)),
                    KILL_TIMEOUT,
                )
        await self._control.stop()
        for listener in self._listeners:
            listener.close()
        if self._metrics_listener is not None:
            self._metrics_listener.close()
        self.notifier.close()
        _log.info("ended")
        logging.getLogger().removeHandler(self._problems)


async def _all(awaitables: Any) -> None:
    await asyncio.gather(*awaitables)
