"""The rendezvous carrier: envelopes through a service, to which each side has one WebSocket.

One :class:`Rendezvous` is one WebSocket. A gateway has one for all peers that it reaches by the
same service. It reconnects for ever, with growing delays and jitter. A link that is up does not
notice. :mod:`socks_tunnel.protocol.rendezvous` has the frames and parcels.

The service is not trusted. It can refuse, delay and forge messages, and so prevent a link.
Envelopes are signed, so their receiver rejects forged ones.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import aiohttp

from socks_tunnel.ops.advice import advice_for
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.protocol.errors import RemoteProtocolError
from socks_tunnel.protocol.rendezvous import (
    REASONS,
    REF_SIZE,
    Absent,
    Challenge,
    Drain,
    FromKey,
    Parcel,
    Presence,
    Welcome,
    decode_parcel,
    encode_parcel,
    watches,
)
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.protocol.rendezvous_relay import Relayed
from socks_tunnel.protocol.rendezvous_states import ClientConnection
from socks_tunnel.signaling.carrier import (
    Handlers,
    IceServers,
    SignalingError,
    SignalingRefused,
    offered_relay,
    offered_servers,
    remote_address,
)
from socks_tunnel.signaling.clock import SignalingClock
from socks_tunnel.signaling.identity import PrivateIdentity, public_key_text
from socks_tunnel.signaling.presence import PresenceBoard
from socks_tunnel.signaling.rendezvous_asking import ANSWERS, Delays, Waiting, fail_those
from socks_tunnel.signaling.rendezvous_doubt import ANSWER_WITHIN, Doubt, Unanswered
from socks_tunnel.signaling.rendezvous_load import LoadTold
from socks_tunnel.signaling.rendezvous_relay import ServiceRelay
from socks_tunnel.signaling.rendezvous_revoked import RevokedTold
from socks_tunnel.signaling.rendezvous_socket import open_socket, send_frame
from socks_tunnel.signaling.rendezvous_words import (
    CONNECT_TIMEOUT,
    Offers,
    SkewTold,
    end_sentence,
    failure_sentence,
)

_log = logging.getLogger(__name__)

UNDISTURBED: Final = 4.0
"""Least seconds for an attempt to connect, even if the network changes meanwhile."""

OFFERS_MAX: Final = 1024
"""Our offers that may wait for an answer at a time."""

HANDLED_MAX: Final = 32
"""Envelopes that are handled at the same time, and as many requests to join."""

HANDLE_TIMEOUT: Final = 30.0
"""Seconds within which one of them must be handled."""

LIVED_LONG: Final = 10.0
"""Seconds after which the end of a connection does not count as another failure in a row."""


class _Ended(Exception):  # noqa: N818 - it is not always an error
    """The connection has ended; the text says why."""


class Rendezvous:
    """One service, with one WebSocket to it from :meth:`start` to :meth:`stop`.

    `url` is `wss://HOST[:PORT][/PATH]`, or `ws://`; `ca`, `proxy` are as for
    :class:`socks_tunnel.signaling.direct.DirectClient`. `handlers` are for messages of others,
    which are dropped without them. `enrolment` is presented to the service unless it is empty.
    `dropped` is called with the reason for each dropped parcel, one of
    :data:`socks_tunnel.ops.labels.PARCEL_DROPS`. `clock` is told the service's time. `relay`
    carries datagrams; without it, a relay that counts nothing is made. The service is told the load
    that `load` returns, and that the enrolments of the keys that `revoked` returns are void.
    """

    def __init__(
        self,
        url: str,
        identity: PrivateIdentity,
        delays: Delays,
        *,
        ca: Path | None = None,
        proxy: str | None = None,
        handlers: Handlers | None = None,
        enrolment: bytes = b"",
        dropped: Callable[[str], None] = lambda _: None,
        clock: SignalingClock | None = None,
        relay: ServiceRelay | None = None,
        load: Callable[[], Load] | None = None,
        revoked: Callable[[], Sequence[bytes]] | None = None,
    ) -> None:
        self.url = url
        self.problem: str | None = "not connected yet"
        """Why there is no connection, as a sentence; None while there is one."""
        self._told_problem: str | None = None
        self._host = urlsplit(url).netloc.lower()
        self._identity = identity
        self._delays = delays
        self._ca = ca
        self._proxy = proxy
        self._handlers = handlers
        self._enrolment = enrolment
        self._dropped = dropped
        self._skew = SkewTold(url, clock)
        self._load = LoadTold(load, self._send)
        self.revoked = RevokedTold(revoked, self._send)
        self._wants_loads = False
        self._watched: frozenset[bytes] = frozenset()
        self._task: asyncio.Task[None] | None = None
        self._ws: aiohttp.ClientWebSocketResponse | None = None
        self._protocol: ClientConnection | None = None
        self._open = asyncio.Event()
        self._doubt: Doubt | None = None
        self._connecting: asyncio.Timeout | None = None
        self._began = 0.0
        """When the latest attempt to connect began, in the time of the event loop."""
        self._hurry = asyncio.Event()
        self._waiting: dict[bytes, Waiting] = {}
        self.presence = PresenceBoard()
        self._handling: dict[asyncio.Task[None], bool] = {}  # whether it is a request to join
        self._leaving: asyncio.TimerHandle | None = None
        self._offered: IceServers = ()
        self._offers = Offers(url)
        self.relay = ServiceRelay(url) if relay is None else relay

    # --- its life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Connects, and reconnects until :meth:`stop`."""
        self._task = spawn(f"rendezvous {self._host}", self._connect_forever())

    async def stop(self) -> None:
        """Ends the connection. Requests that wait for an answer fail."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None
        for task in list(self._handling):
            task.cancel()

    def doubt(self) -> None:
        """Checks that the connection works, because the network or the host may have changed.

        A connection that does not work is given up after :data:`ANSWER_WITHIN` seconds, or at once
        if the host has lost its address. Without a connection, the next attempt begins at once, and
        one that is under way has :data:`UNDISTURBED` seconds in all.
        """
        if self._doubt is not None:
            self._doubt.begin()
        elif self._task is not None:
            self._hurry.set()
            if self._connecting is not None:
                now = asyncio.get_running_loop().time()
                self._connecting.reschedule(max(now, self._began + UNDISTURBED))

    def watch(self, keys: Collection[bytes], *, loads: bool = False) -> None:
        """Replaces the watched keys. `loads` says whether their load is wanted too."""
        watched = frozenset(keys)
        if (watched, loads) == (self._watched, self._wants_loads):
            return
        self._watched, self._wants_loads = watched, loads
        self.presence.watch(watched)
        if self._open.is_set():
            spawn("tell the rendezvous whom we watch", self._tell_watched())

    @property
    def skew(self) -> int:
        """Seconds that the service's clock was ahead of ours when it last said its time."""
        return self._skew.seconds

    async def _tell_watched(self) -> None:
        try:
            for frame in self._watches():
                await self._send(frame)
        except SignalingError as error:
            _log.debug("%s", error)  # the next connection sends it

    def _watches(self) -> Iterator[bytes]:
        guests = self._handlers is not None
        return watches(sorted(self._watched), guests=guests, loads=self._wants_loads)

    async def _connect_forever(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._began = loop.time()
            self._hurry.clear()
            try:
                await self._connect()
            except _Ended as ended:
                problem = str(ended)
            except Unanswered:
                problem = f"it did not answer within {ANSWER_WITHIN:g} s"
                self._hurry.set()
            except (OSError, ValueError, aiohttp.ClientError, SignalingError) as error:
                problem = failure_sentence(error)
            except Exception as error:  # noqa: BLE001 - it is reported, and the service is tried again
                _log.exception("the connection to %s ended because of a bug", self.url)
                problem = f"a bug: {clip(error)}"
            finally:
                self._closed()
            self.problem = problem
            if loop.time() - self._began >= LIVED_LONG:
                self._delays.reset()
            delay = 0.0 if self._hurry.is_set() else self._delays.next()
            level = logging.DEBUG if problem == self._told_problem else logging.WARNING
            self._told_problem = problem  # the same sentence is logged once
            text, advice = "rendezvous %s: %s; trying again in %.1f s.%s", advice_for(problem)
            _log.log(level, text, self.url, problem, delay, advice)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._hurry.wait()

    def _closed(self) -> None:
        """Notes that nothing can be sent any more, and that no peer is known to be present."""
        self._open.clear()
        self._ws = None
        self._doubt = None
        self._protocol = None
        self.presence.clear()
        for told in (self._load, self.revoked, self.relay):
            told.closed()
        if self._leaving is not None:
            self._leaving.cancel()
            self._leaving = None
        for waiting in list(self._waiting.values()):
            waiting.fail(f"the connection to {self.url} ended before an answer came")

    # --- one connection -------------------------------------------------------------------------

    async def _connect(self) -> None:
        """Connects and reads until the end. Always raises what ended it."""
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(CONNECT_TIMEOUT) as self._connecting:
                    ws = await open_socket(stack, self.url, self._ca, self._proxy)
                    self._ws = ws
                    self._protocol = ClientConnection(self._host, self._enrolment)
                    while not self._protocol.is_open:
                        await self._receive(ws, self._protocol)
            except TimeoutError:
                if self._hurry.is_set():
                    raise _Ended("no answer, and the network has changed meanwhile") from None
                raise
            finally:
                self._connecting = None
            await self._opened(self._protocol)
            self._doubt = Doubt(ws, partial(self._receive, ws, self._protocol))
            await self._doubt.read()

    async def _opened(self, protocol: ClientConnection) -> None:
        welcome = protocol.welcome
        assert welcome is not None
        _log.info("rendezvous %s: connected", self.url)
        self.problem = self._told_problem = None
        self._skew.tell(protocol.skew)
        if len(self._watched) > welcome.watch:
            raise _Ended(
                f"it lets this host watch {welcome.watch} keys, but {len(self._watched)} peers are "
                "configured"
            )
        for frame in self._watches():
            await self._send(frame)
        self._open.set()
        self._load.opened(welcome.load)
        self.revoked.opened(welcome.revoked, self._identity.sign, protocol.revocation_text)

    async def _receive(
        self, ws: aiohttp.ClientWebSocketResponse, protocol: ClientConnection
    ) -> None:
        """Waits for one frame and handles it. Raises :class:`_Ended`."""
        message = await ws.receive()
        if message.type is aiohttp.WSMsgType.PING:
            await ws.pong(message.data)
            return
        if message.type is aiohttp.WSMsgType.PONG:
            return
        if message.type is not aiohttp.WSMsgType.BINARY:
            raise _Ended(end_sentence(ws, message))
        now = time.time()
        try:
            event = protocol.receive(message.data, now)
        except RemoteProtocolError as error:
            raise _Ended(f"it broke the protocol: {error}") from None
        match event:
            case Challenge():
                signature = self._identity.sign(protocol.signed_text(now))
                await self._send(protocol.proof(self._identity.public, signature, now))
            case Presence():
                # An envelope that went to a connection that has ended may never have arrived.
                fail_those(self._waiting.values(), event.offline, f"the peer has left {self.url}")
                self.presence.see(event)
            case FromKey():
                self._take(event)
            case Relayed():
                self.relay.receive(event)
            case Absent(channel=channel) if channel:
                self.relay.refused(event)
            case Absent(to=to, reason=reason):
                fail_those(self._waiting.values(), [to], f"{self.url}: {REASONS[reason]}")
            case Drain(within=within):
                delay = random.uniform(0, within)  # noqa: S311 - no secret
                if self._leaving is None:
                    _log.info("rendezvous %s restarts; leaving it in %.1f s", self.url, delay)
                    loop = asyncio.get_running_loop()
                    self._leaving = loop.call_later(
                        delay, lambda: spawn("leave the rendezvous", ws.close())
                    )
            case Welcome(turn=turn):
                self._offered = self._offers.usable(turn, now)
                self.relay.opened(ws, event.relay)

    async def _send(self, frame: bytes) -> None:
        """Sends a frame. Raises :class:`SignalingError`."""
        if self._ws is None:
            raise SignalingError(f"no connection to {self.url}: {self.problem}")
        await send_frame(self._ws, frame, self.url)

    async def appeared(self, key: bytes) -> None:
        """Waits until the service reports that a key has appeared."""
        await self.presence.appeared(key)

    # --- offers of ours -------------------------------------------------------------------------

    async def ice_servers(self, timeout: float) -> IceServers:  # noqa: ASYNC109
        """Waits for a connection to the service, and returns the TURN servers that it offers.

        Raises :class:`SignalingError` if there is none within `timeout` seconds.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._open.wait()
        except TimeoutError:
            raise SignalingError(f"no connection to {self.url}: {self.problem}") from None
        return self._offered

    async def offer(self, to: bytes, envelope: bytes, timeout: float) -> tuple[bytes, str]:  # noqa: ASYNC109
        """Delivers an offer to a key. Returns the answer's envelope and the session's name.

        Raises :class:`SignalingError`.
        """
        return await self._ask("offer", to, envelope, timeout)

    async def join(self, to: bytes, request: bytes, timeout: float) -> bytes:  # noqa: ASYNC109
        """Delivers a request to join to a key.

        Returns the answer. Raises :class:`SignalingError`.
        """
        answer, _ = await self._ask("join", to, request, timeout)
        return answer

    async def _ask(self, kind: str, to: bytes, asked: bytes, timeout: float) -> tuple[bytes, str]:  # noqa: ASYNC109
        if len(self._waiting) >= OFFERS_MAX:
            raise SignalingError(f"{OFFERS_MAX} offers wait for answers through {self.url}")
        ref = secrets.token_bytes(REF_SIZE)
        self._waiting[ref] = waiting = Waiting(to, kind)
        try:
            async with asyncio.timeout(timeout):
                await self._open.wait()
                await self._pass(to, Parcel(kind, ref, envelope=asked))
                self.doubt()  # the caller needs a link, perhaps because the network has changed
                return await waiting.answer
        except TimeoutError:
            if not self._open.is_set():
                text = f"no connection to {self.url}: {self.problem}"
                raise SignalingError(text) from None
            raise SignalingError(f"no answer through {self.url} within {timeout:g} s") from None
        finally:
            del self._waiting[ref]
            if waiting.answer.done() and not waiting.answer.cancelled():
                waiting.answer.exception()  # the caller may have stopped waiting
            waiting.answer.cancel()

    async def bye(self, to: bytes, session: str, envelope: bytes, timeout: float = 5.0) -> None:  # noqa: ASYNC109
        """Delivers a goodbye. Raises :class:`SignalingError`."""
        if not self._open.is_set():
            raise SignalingError(f"no connection to {self.url}: {self.problem}")
        try:
            async with asyncio.timeout(timeout):
                await self._pass(
                    to, Parcel("bye", secrets.token_bytes(REF_SIZE), session, envelope)
                )
        except TimeoutError:
            raise SignalingError(f"{self.url} takes nothing") from None

    async def _pass(self, to: bytes, parcel: Parcel) -> None:
        protocol = self._protocol
        if protocol is None or not protocol.is_open:
            raise SignalingError(f"no connection to {self.url}: {self.problem}")
        try:
            frame = protocol.envelope(to, encode_parcel(parcel))
        except ValueError as error:
            raise SignalingError(f"{self.url}: {error}") from None
        await self._send(frame)

    # --- what others send -----------------------------------------------------------------------

    def _take(self, event: FromKey) -> None:
        """Takes a parcel. The sender that the service names is not proved."""
        try:
            parcel = decode_parcel(event.body)
        except RemoteProtocolError as error:
            _log.debug("a parcel of %s: %s", public_key_text(event.sender), error)
            self._dropped("malformed")
            return
        if parcel.kind in ANSWERS or parcel.kind == "bye":
            self._handle(event.sender, parcel)
            return
        waiting = self._waiting.get(parcel.ref)
        if waiting is None or waiting.to != event.sender or waiting.answer.done():
            self._dropped("unasked")  # no request waits for it, or it is too late
            return
        if parcel.kind == "refused":
            sentence = f"the peer refused the {waiting.kind} through {self.url}"
            waiting.fail(f"{sentence}; its log says why", SignalingRefused)
        elif parcel.kind == ANSWERS[waiting.kind]:
            waiting.answer.set_result((parcel.envelope, parcel.session))
        else:
            self._dropped("unasked")

    def _handle(self, sender: bytes, parcel: Parcel) -> None:
        # A gateway accepts none of these, and no honest sender sends them.
        if self._handlers is None:
            self._dropped("not-for-gateways")
            return
        joins = parcel.kind == "join"
        if list(self._handling.values()).count(joins) >= HANDLED_MAX:  # the sender's time runs out
            self._dropped("too-many")
            return
        task = spawn("handle an envelope", self._handled(sender, parcel))
        self._handling[task] = joins
        task.add_done_callback(self._handling.pop)

    async def _handled(self, sender: bytes, parcel: Parcel) -> None:
        remote_address.set(self._host)
        offered_servers.set(self._offered)
        offered_relay.set(self.relay.to)
        try:
            async with asyncio.timeout(HANDLE_TIMEOUT):
                answer = await self._answer_to(parcel)
        except TimeoutError:
            _log.warning("the answer to an envelope was given up after %g s", HANDLE_TIMEOUT)
            self._dropped("timeout")
            return
        if answer is None:
            return
        try:
            await self._pass(sender, answer)
        except SignalingError as error:
            _log.info("an answer could not be sent: %s", error)
            self._dropped("answer-not-sent")

    async def _answer_to(self, parcel: Parcel) -> Parcel | None:
        """Has a parcel handled. Returns its answer, or None for a goodbye."""
        assert self._handlers is not None
        ref, envelope = parcel.ref, parcel.envelope
        if parcel.kind == "bye":
            await self._handlers.bye(parcel.session, envelope)
            return None
        if parcel.kind == "join":
            joined = await self._handlers.join(envelope)
            if joined is not None:
                return Parcel("joined", ref, envelope=joined)
        else:
            answered = await self._handlers.offer(envelope)
            if answered is not None:
                return Parcel("answer", ref, answered.session_id, answered.envelope)
        return Parcel("refused", ref)
