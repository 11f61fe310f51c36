"""One WebSocket of the service: its client's proof, frames in, and the outbox out."""

import asyncio
import logging
import random
import secrets
import time
from typing import Any, Final, Protocol

from aiohttp import WSMsgType, web

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.rendezvous import (
    CLOSE_FORBIDDEN,
    CLOSE_LATE,
    CLOSE_PROOF,
    CLOSE_PROTOCOL,
    NONCE_SIZE,
    SESSION_SIZE,
    Proof,
    ToKey,
    Watch,
    encode,
)
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.protocol.rendezvous_relay import BLOCKED_TIME, Relayed
from socks_tunnel.protocol.rendezvous_revoked import Revocation
from socks_tunnel.protocol.rendezvous_states import ServiceConnection
from socks_tunnel.rendezvous.client import Client
from socks_tunnel.rendezvous.enrolled import whose_enrolment
from socks_tunnel.rendezvous.limits import Bucket
from socks_tunnel.rendezvous.registry import GUEST_SECONDS, Refused, Registry
from socks_tunnel.rendezvous.relay import RelayHall
from socks_tunnel.rendezvous.turn import RENEWAL
from socks_tunnel.rendezvous.waiting import Waiting
from socks_tunnel.signaling.identity import verify

_log = logging.getLogger(__name__)

ENROLMENT_CHECKED: Final = 600.0
"""Longest time in seconds between two checks whether a client's enrolment has expired."""

SEND_TIMEOUT: Final = 10.0
"""Seconds within which the kernel must take one frame. After that, the client is given up."""

CLOSE_TIMEOUT: Final = 2.0
"""Seconds for a client to answer the close of its connection."""

TOLD_WITHIN: Final = 10.0
"""Seconds over which all clients are told of changed TURN servers or relay settings."""


REFUSALS_LOGGED: Final = 20
REFUSALS_PERIOD: Final = 10.0
"""So many refusals are logged within so many seconds; all are counted."""


class Node(Protocol):
    """The service to which a session belongs."""

    refusals: Bucket
    """What the log may have of them."""
    registry: Registry
    relay: RelayHall
    sessions: "dict[Session, Client]"

    @property
    def hosts(self) -> frozenset[str]:
        """The host names of the service; empty: any."""

    def proved(self, waiting: Waiting) -> None:
        """Notes that the connection is that of a client now."""

    def left(self, client: Client) -> None:
        """A client's connection has ended."""


class Session:
    """One WebSocket: proof, then frames in, and the outbox out."""

    def __init__(self, service: Node, ws: web.WebSocketResponse, waiting: Waiting) -> None:
        self._service = service
        self._ws = ws
        self._waiting = waiting
        self._protocol = ServiceConnection(secrets.token_bytes(NONCE_SIZE), service.hosts, verify)
        self._client: Client | None = None
        self._flushing: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[Any] | None = None
        self._renewal: asyncio.TimerHandle | None = None
        self._leave_at: asyncio.TimerHandle | None = None
        self._id = secrets.token_bytes(SESSION_SIZE)

    async def run(self) -> None:
        """Serves until the connection ends."""
        try:
            await self._ws.send_bytes(self._protocol.challenge())
            while True:
                message = await self._ws.receive()
                if message.type is WSMsgType.BINARY:
                    await self._frame(message.data)
                elif message.type is WSMsgType.TEXT:
                    self._service.registry.counts["protocol: text"] += 1
                    await self._close(CLOSE_PROTOCOL, "frames are binary messages")
                    return
                else:
                    return  # the connection is closed or broken
        except Refused as refusal:
            name = self._client.name if self._client is not None else "a key"
            told = self._service.refusals.take(asyncio.get_running_loop().time())
            level = logging.INFO if told else logging.DEBUG
            _log.log(level, "closing the connection of %s: %s", name, refusal)
            await self._close(refusal.code, str(refusal))
        except RemoteProtocolError as error:
            self._service.registry.counts[f"protocol: {error.kind}"] += 1
            _log.debug("closing a connection: %s", error)
            code = CLOSE_PROOF if error.kind == "proof" else CLOSE_PROTOCOL
            await self._close(code, str(error))
        finally:
            self._service.sessions.pop(self, None)
            if self._client is not None:
                self._service.left(self._client)
                self._client.finish(CLOSE_LATE, "gone")
            if self._flushing is not None:
                self._flushing.cancel()
            for timer in (self._renewal, self._leave_at):
                if timer is not None:
                    timer.cancel()

    async def _frame(self, data: bytes) -> None:
        registry, now = self._service.registry, asyncio.get_running_loop().time()
        match self._protocol.receive(data):
            case Proof(key=key, enrolment=enrolment):
                enrolled = whose_enrolment(enrolment, key)
                client = registry.join(
                    key,
                    now,
                    wake=self._wake,
                    end=self._end,
                    enrolled_by=None if enrolled is None else enrolled.by,
                    enrolled_until=0 if enrolled is None else enrolled.until,
                )
                self._client = client
                self._service.proved(self._waiting)
                if client.guest:
                    loop = asyncio.get_running_loop()
                    self._leave_at = loop.call_later(GUEST_SECONDS, self._end_guest, client)
                elif client.enrolled_until:
                    self._end_in_time(client, client.enrolled_until)
                self._service.sessions[self] = client
                self._welcome(client)
                _log.debug("%s is here; %d clients", client.name, len(registry))
            case Watch() as asked if self._client is not None:
                registry.watch(self._client, asked)
            case ToKey(to=to, body=body) if self._client is not None:
                registry.envelope(self._client, to, body, now)
            case Load() as load if self._client is not None:
                registry.load(self._client, load, now)
            case Revocation() as said if self._client is not None:
                registry.revocations.tell(self._client, said)
            case Relayed() as frame if self._client is not None:
                self._service.relay.relay(self._client, frame, now)

    def _welcome(self, client: Client) -> None:
        """Sends a welcome to the client, and again before its TURN logins expire."""
        client.push(encode(self._service.registry.welcome(client, self._id, time.time())))
        self._renewal = asyncio.get_running_loop().call_later(RENEWAL, self._welcome, client)

    def welcome_soon(self, client: Client) -> None:
        """Tells the client of changes after a random time, because there may be many clients."""
        if self._renewal is not None:
            self._renewal.cancel()
        delay = random.uniform(0, TOLD_WITHIN)  # noqa: S311 - no secret
        self._renewal = asyncio.get_running_loop().call_later(delay, self._welcome, client)

    @staticmethod
    def _end_guest(client: Client) -> None:
        client.finish(CLOSE_FORBIDDEN, "a guest may be here for a short time only")

    def _end_in_time(self, client: Client, until: int) -> None:
        """Ends the client when its enrolment expires, by the wall clock, which may be changed."""
        if client.listed:
            return
        left = until - time.time()
        if left <= 0:
            registry = self._service.registry
            registry.leave(client)
            registry.counts["ended: enrolment over"] += 1
            client.finish(CLOSE_FORBIDDEN, "its enrolment has ended")
            return
        loop = asyncio.get_running_loop()
        self._leave_at = loop.call_later(
            min(left, ENROLMENT_CHECKED), self._end_in_time, client, until
        )

    # --- frames out -----------------------------------------------------------------------------

    def _wake(self) -> None:
        if self._flushing is None or self._flushing.done():
            # The task ends when the outbox is empty, so that ten thousand idle clients need no
            # tasks.
            self._flushing = spawn("send to a client", self._flush())

    async def _flush(self) -> None:
        client = self._client
        if client is None:  # join() has not returned yet; the welcome comes next
            return
        frame: bytes | None = None
        clock = asyncio.get_running_loop().time
        try:
            while (frame := client.pop()) is not None:
                began = clock()
                async with asyncio.timeout(SEND_TIMEOUT):
                    await self._ws.send_bytes(frame)
                if client.relayed is not None and (now := clock()) - began > BLOCKED_TIME:
                    client.relayed.expire(now)
        except TimeoutError:
            client.lost(frame)
            self._service.registry.counts["ended: slow"] += 1
            _log.info("closing the connection of %s: it does not read", client.name)
            self._waiting.abort()
        except (ConnectionError, RuntimeError) as error:  # RuntimeError: the connection is closing
            client.lost(frame)
            _log.debug("cannot send to %s: %s", client.name, clip(error))
            self._waiting.abort()

    def _end(self, code: int, reason: str) -> None:
        if not self._ws.closed and code != CLOSE_LATE:
            self._closing = spawn("close a connection", self._close(code, reason))

    async def _close(self, code: int, reason: str) -> None:
        try:
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await self._ws.close(code=code, message=reason.encode()[:120])
        except (TimeoutError, ConnectionError, RuntimeError) as error:
            _log.debug("a connection did not close in order: %s", clip(error))
        self._waiting.abort()
