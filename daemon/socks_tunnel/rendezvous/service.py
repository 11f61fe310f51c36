"""The service's sockets: WebSockets by aiohttp around the registry, and the door before them."""

import asyncio
import contextlib
import logging
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web

from socks_tunnel.config.rendezvous import RendezvousConfig
from socks_tunnel.ops.accepting import accept
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.ops.write_queue import WRITE_BUFFER, keep_queue_short
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.rendezvous import (
    CLOSE_GOING_AWAY,
    FRAME_MAX,
    PATH,
)
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.configured import listed_keys, turn_logins
from socks_tunnel.rendezvous.limits import Bucket, Door
from socks_tunnel.rendezvous.registry import Registry
from socks_tunnel.rendezvous.relay import RelayHall
from socks_tunnel.rendezvous.session import CLOSE_TIMEOUT, REFUSALS_LOGGED, REFUSALS_PERIOD, Session
from socks_tunnel.rendezvous.waiting import Waiting
from socks_tunnel.signaling.direct import inode_of, listen_tcp, listen_unix
from socks_tunnel.signaling.tls import ServerCertificate

if TYPE_CHECKING:  # the client of Redis is imported only if one is configured
    from socks_tunnel.rendezvous.redis_bus import RedisBus

_log = logging.getLogger(__name__)

PROOF_TIMEOUT: Final = 10.0
"""Seconds from accepting a connection until its key must be proved, TLS included."""

HEARTBEAT: Final = 30.0
"""Seconds of silence after which a client gets a PING. It has half of that to answer."""

ACCEPT_PAUSE: Final = 1.0
"""Seconds without accepting connections after an error such as too many open files."""

UNIX: Final = "unix"
"""Entry of `trusted_proxies` for clients of a Unix socket."""

_http_log = logging.getLogger(f"{__name__}.http")
# Anybody can send what is no HTTP, as often as he likes; our own part guards itself.
_http_log.setLevel(logging.CRITICAL + 1)


class _HttpServer(web.Server):
    """Reports when a connection has ended."""

    def __init__(self, service: "Service", **kwargs: Any) -> None:
        super().__init__(service.answer, **kwargs)
        self._service = service

    def connection_lost(self, handler: Any, exc: BaseException | None = None) -> None:
        """The connection has ended."""
        super().connection_lost(handler, exc)
        self._service.lost(handler)


class Service:
    """One node. Made on the event loop that it runs on."""

    def __init__(self, config: RendezvousConfig, certificate: ServerCertificate | None) -> None:
        self.door = Door()
        self.registry = Registry(
            listed_keys(config),
            clients=config.clients,
            clients_max=config.clients_max,
        )
        self.relay = RelayHall(self.registry, config.relay)
        self._bugs = BugLog()
        self._bus: RedisBus | None = None
        if config.redis_url:
            from socks_tunnel.rendezvous.nodes import join_others  # noqa: PLC0415 - as above

            self._bus = join_others(config.redis_url, self.registry, self.relay, self._bugs)
        self.address: HostPort | Path = config.listen
        """The address of the listener. If port 0 was asked for, it has the port that the system
        chose."""
        self._draining = False
        self._http: _HttpServer | None = None
        self._listening: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._inode: int | None = None
        """Which file the Unix socket is that is ours, if we listen on one."""
        self._waiting: dict[Any, Waiting] = {}
        self._empty = asyncio.Event()
        self.sessions: dict[Session, Client] = {}
        now = asyncio.get_running_loop().time()
        self.refusals = Bucket(REFUSALS_LOGGED / REFUSALS_PERIOD, REFUSALS_LOGGED, now)
        self._offered: object = None
        self.apply(config, certificate)

    # --- its life -------------------------------------------------------------------------------

    def apply(self, config: RendezvousConfig, certificate: ServerCertificate | None) -> None:
        """Takes changed keys, names, certificate, TURN servers and relay, and no other settings."""
        before = self._offered
        self._tls: ssl.SSLContext | None = None if certificate is None else certificate.context
        names = set(config.names)
        if not names and certificate is not None:
            names = {name.lower() for name in certificate.names}
            if any(name.startswith("*.") for name in names):
                names = set()  # its meaning is not known here
        self._hosts = frozenset(names)
        self._proxies = frozenset(config.trusted_proxies)
        self.registry.update(listed_keys(config))
        self.registry.turn = turn_logins(config)
        self.relay.apply(config.relay)
        self._offered = config.turn, self.registry.relay_rate
        if self._offered != before:
            for session, client in self.sessions.items():
                session.welcome_soon(client)

    async def start(self) -> None:
        """Listens. Raises :class:`OSError`."""
        where = self.address
        if isinstance(where, Path):
            self._listening = listen_unix(where)
            self._inode = inode_of(where)
        else:
            self._listening = listen_tcp(where)
            self.address = HostPort(*self._listening.getsockname()[:2])
        self._http = _HttpServer(
            self,
            access_log=None,
            logger=_http_log,
            auto_decompress=False,
            keepalive_timeout=PROOF_TIMEOUT,
            lingering_time=0.0,
        )
        if self._bus is not None:
            self._bus.start()
        self._accepting = spawn("accept rendezvous connections", self._accept_forever())

    async def drain(self, seconds: float) -> None:
        """Stops listening, asks all clients to leave within so many seconds, and waits for that."""
        self._draining = True
        await self._stop_listening()
        if seconds >= 1 and len(self.registry):
            self.registry.drain(int(seconds))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._gone()

    async def stop(self) -> None:
        """Ends all connections; bounded in time."""
        self._draining = True
        await self._stop_listening()
        self.registry.end_all(CLOSE_GOING_AWAY, "the service is shutting down")
        for waiting in list(self._waiting.values()):
            waiting.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2 * CLOSE_TIMEOUT):
                await self._gone()
        if self._http is not None:
            await self._http.shutdown(CLOSE_TIMEOUT)
            self._http = None
        if self._bus is not None:
            await self._bus.stop()
            self._bus = None

    async def _gone(self) -> None:
        while len(self.registry):
            self._empty.clear()
            await self._empty.wait()

    async def _stop_listening(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            await asyncio.wait([self._accepting])
            self._accepting = None
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            # What somebody else has put in its place meanwhile is theirs.
            if isinstance(self.address, Path) and inode_of(self.address) == self._inode:
                self.address.unlink(missing_ok=True)

    # --- connections ----------------------------------------------------------------------------

    async def _accept_forever(self) -> None:
        assert self._listening is not None
        while True:
            try:
                sock, peer = await accept(self._listening)
            except ConnectionAbortedError:
                continue  # the client has gone already
            except OSError as error:
                _log.warning("cannot accept a connection: %s", error)
                await asyncio.sleep(ACCEPT_PAUSE)
                continue
            self._admit(sock, peer[0] if isinstance(peer, tuple) else UNIX)

    def _admit(self, sock: socket.socket, address: str) -> None:
        waiting = Waiting(sock)
        counted = "" if address in self._proxies or address == UNIX else address
        loop = asyncio.get_running_loop()
        ticket = self.door.admit(counted, waiting.abort, loop.time())
        if ticket is None:
            _log.debug("a connection of %s is refused: too many", address)
            sock.close()
            return
        waiting.ticket = ticket
        waiting.deadline = loop.call_later(PROOF_TIMEOUT, waiting.abort)
        waiting.opening = spawn("open a rendezvous connection", self._open(waiting))
        waiting.opening.add_done_callback(lambda _: self._opened(waiting))

    def _opened(self, waiting: Waiting) -> None:
        waiting.opening = None
        if waiting.handler is None:  # the task was cancelled before it began
            waiting.sock.close()
            self._admitted(waiting)

    async def _open(self, waiting: Waiting) -> None:
        assert self._http is not None
        http = self._http
        waiting.handler = handler = http()
        self._waiting[handler] = waiting
        timeouts: dict[str, Any] = {}
        if self._tls is not None:
            timeouts = {
                "ssl_handshake_timeout": PROOF_TIMEOUT,
                "ssl_shutdown_timeout": CLOSE_TIMEOUT,
            }
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: handler, waiting.sock, ssl=self._tls, **timeouts
            )
        except OSError as error:  # ssl.SSLError and TimeoutError are OSErrors
            _log.debug("no connection: %s", clip(error))
        finally:
            if handler.transport is None:  # it was not counted, or has been removed already
                self.lost(handler)

    def lost(self, handler: Any) -> None:
        """Forgets a connection that has ended."""
        waiting = self._waiting.pop(handler, None)
        if waiting is not None:
            self._admitted(waiting)

    def _admitted(self, waiting: Waiting) -> None:
        """Removes a connection from those that have not proved a key."""
        if waiting.deadline is not None:
            waiting.deadline.cancel()
        if waiting.ticket is not None:
            self.door.release(waiting.ticket)

    # --- requests -------------------------------------------------------------------------------

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers a request: WebSockets at the path of the protocol, and health checks."""
        waiting = self._waiting.get(request.protocol)
        path = request.path
        if waiting is None or not self._is_welcome(request, waiting):
            return _closing(429)
        if path == "/healthz":
            return _closing(503 if self._draining else 200)
        if not path.endswith(PATH):
            return _closing(404)
        if self._draining:
            return _closing(503)
        ws = web.WebSocketResponse(
            heartbeat=HEARTBEAT,
            max_msg_size=FRAME_MAX,
            compress=False,
            timeout=CLOSE_TIMEOUT,
            writer_limit=WRITE_BUFFER,
        )
        if not ws.can_prepare(request):
            return _closing(426)
        await ws.prepare(request)
        keep_queue_short(request.transport)
        try:
            await Session(self, ws, waiting).run()
        except (ConnectionError, asyncio.IncompleteReadError) as error:
            _log.debug("a connection broke: %s", clip(error))
        except Exception as error:  # noqa: BLE001 - only this connection ends, and that is logged and counted
            self.registry.counts["bugs"] += 1
            self._bugs.tell(_log, "a connection ended because of a bug", error)
        finally:
            if not ws.closed:
                await ws.close()
            waiting.abort()
        return ws

    def _is_welcome(self, request: web.BaseRequest, waiting: Waiting) -> bool:
        """Counts a connection through a trusted proxy for the address that the proxy names."""
        remote = request.remote or UNIX
        forwarded = request.headers.getall("X-Forwarded-For", [])
        if remote not in self._proxies or not forwarded or waiting.ticket is None:
            return True
        # The proxy itself has seen only the last address. The earlier ones were told to it.
        address = forwarded[-1].rpartition(",")[2].strip()
        return self.door.move(waiting.ticket, address, asyncio.get_running_loop().time())

    # --- for sessions and metrics ---------------------------------------------------------------

    @property
    def redis_is_up(self) -> bool | None:
        """Whether the other nodes can be reached; None if there are none."""
        return None if self._bus is None else self._bus.is_up

    @property
    def draining(self) -> bool:
        """Whether no more clients are accepted."""
        return self._draining

    @property
    def hosts(self) -> frozenset[str]:
        """The host names of the service; empty: any."""
        return self._hosts

    def proved(self, waiting: Waiting) -> None:
        """Notes that the connection is that of a client now."""
        if waiting.ticket is not None:
            self.door.proved(waiting.ticket, asyncio.get_running_loop().time())
        self._admitted(waiting)

    def left(self, client: Client) -> None:
        """A client's connection has ended."""
        self.registry.leave(client)
        self.relay.left(client)
        self._empty.set()


def _closing(status: int) -> web.Response:
    response = web.Response(status=status)
    response.force_close()
    return response
