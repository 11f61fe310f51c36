"""The endpoint's side of a TCP flow from the request on: decide, dial or listen, answer, relay."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Sequence
from functools import partial
from ipaddress import ip_address
from typing import Any, Protocol, Self, cast

import pytest

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason, Reply
from socks_tunnel.protocol.messages import (
    Bind,
    BindAccepted,
    BindListening,
    CloseConnection,
    ConnectionOpened,
    Data,
    Message,
    OpenConnection,
)
from socks_tunnel_workers.sockets import Liveness
from socks_tunnel_workers.targets import tcp
from socks_tunnel_workers.targets.access import AccessDeniedError, Allowed, UnresolvedError
from socks_tunnel_workers.targets.dialer import DialError
from socks_tunnel_workers.targets.services import TargetServices
from socks_tunnel_workers.targets.tcp import TargetRelay
from unit.workers.frontends.fakes import Gateway, Loop, Sock

ADDRESS = ip_address("10.0.0.1")
LOCAL = ("192.0.2.9", 4000)
OPEN = OpenConnection(7, "target.example", 80)
LITERAL = HostPort("10.0.0.1", 80)
OPEN_LITERAL = OpenConnection(7, *LITERAL)
BIND = Bind(7, HostPort("10.0.0.1", 20))


class Peer(Sock):
    """A connected socket whose other end has an address."""

    def __init__(self, loop: Loop, peer: tuple[Any, ...] = ("10.0.0.1", 80)) -> None:
        super().__init__(loop, local=LOCAL)
        self.peer = peer

    def getpeername(self) -> tuple[Any, ...]:
        return self.peer


class Listening(Sock):
    """A listening socket, and who calls."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(loop, local=LOCAL)
        self.callers: asyncio.Queue[Peer | OSError] = asyncio.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()


class Attempted:
    """An attempt whose outcome the test tells its owner."""

    def __init__(self, *arguments: Any) -> None:
        _, self.owner, self.guard, *self.where = arguments
        self.liveness: Liveness | None = None
        self.cancelled = False

    def start(self, liveness: Liveness) -> None:
        self.liveness = liveness

    def cancel(self) -> None:
        self.cancelled = True


class Site:
    """An endpoint's worker with one flow; what the world answers is the test's."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        request: OpenConnection | Bind,
        decision: Exception | None = None,
    ) -> None:
        self.gateway = Gateway(policy={"allowed_hosts": ["0.0.0.0"], "allowed_ports": ["*"]})
        self.session = self.gateway.session()
        self.decision: Allowed | Exception = decision or Allowed((ADDRESS,), None)
        self.dialled: list[tuple[Sequence[object], int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.result: Peer | Exception = Peer(self.gateway.loop)
        self.listening: Listening | OSError = Listening(self.gateway.loop)
        self.warnings: list[str] = []
        self.permitted: list[object] = [ADDRESS]
        # No clock: that the time is over is said by whoever waits.
        monkeypatch.setattr(asyncio, "timeout", lambda _seconds: contextlib.nullcontext())
        monkeypatch.setattr(tcp, "dial", self._dial)
        monkeypatch.setattr(tcp, "accept", self._accept)
        monkeypatch.setattr(tcp, "Attempt", self._attempt)
        self.attempts: list[Attempted] = []
        monkeypatch.setattr(tcp, "listen_toward", self._listen)
        targets = TargetServices(self.gateway.settings, cast("Any", self), self._warn)
        self.flow = TargetRelay(targets, self.session, request)
        self.session.admit(self.flow)
        self.flow.start()

    def _warn(self, kind: str, sentence: str, *arguments: object) -> None:
        self.warnings.append(f"{kind}: {sentence % arguments}")

    async def decide(self, *_: object, **__: object) -> Allowed:
        if isinstance(self.decision, Exception):
            raise self.decision
        return self.decision

    def literal(self, _asker: object, _policy: object, destination: HostPort) -> Allowed | None:
        if destination == LITERAL and isinstance(self.decision, Exception):
            raise self.decision
        return Allowed((ADDRESS,), None) if destination == LITERAL else None

    def recheck(self, *_: object) -> list[object]:
        return self.permitted

    async def _dial(self, addresses: Sequence[object], port: int, **_: object) -> Peer:
        self.dialled.append((addresses, port))
        await self.gate.wait()
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def _attempt(self, *arguments: Any, seconds: float) -> Attempted:
        self.attempts.append(Attempted(*arguments, seconds))
        return self.attempts[-1]

    def _listen(self, address: object) -> Listening:
        if isinstance(self.listening, OSError):
            raise self.listening
        return self.listening

    async def _accept(self, listener: Listening) -> tuple[Peer, tuple[Any, ...]]:
        caller = await listener.callers.get()
        if isinstance(caller, OSError):
            raise caller
        return caller, caller.peer

    async def done(self) -> list[Message]:
        """What was sent until the flow's task had nothing more to do."""
        task = self.flow.task
        if task is not None:
            await asyncio.wait([task])
        return self.gateway.sent(self.session)


class Make(Protocol):
    def __call__(
        self, request: OpenConnection | Bind, decision: Exception | None = None
    ) -> Site: ...


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    return partial(Site, monkeypatch)


async def test_a_connect_dials_what_was_decided_and_answers_with_our_address(make: Make) -> None:
    site = make(OPEN)
    assert await site.done() == [ConnectionOpened(7, HostPort(*LOCAL))]
    assert site.dialled == [((ADDRESS,), 80)]
    assert site.flow.allowed == Allowed((ADDRESS,), None)
    assert isinstance(site.result, Peer)
    site.result.arrives(b"hello")
    assert site.gateway.sent(site.session) == [Data(7, b"hello")]


def test_a_literal_is_connected_to_without_a_task(make: Make) -> None:
    site = make(OPEN_LITERAL)
    (attempt,) = site.attempts
    assert attempt.where == [ADDRESS, 80, site.gateway.settings.config.targets.connect_timeout]
    assert attempt.liveness == site.flow._liveness()
    assert site.flow.task is None
    sock = Peer(site.gateway.loop)
    attempt.owner.take(sock)
    assert site.gateway.loop.readers.keys() == {sock}
    attempt.owner.connected()
    assert site.gateway.sent(site.session) == [ConnectionOpened(7, HostPort(*LOCAL))]
    assert site.flow.allowed == Allowed((ADDRESS,), None)
    sock.arrives(b"hello")
    assert site.gateway.sent(site.session) == [Data(7, b"hello")]


def test_a_literal_that_is_denied_is_not_connected_to(make: Make) -> None:
    site = make(OPEN_LITERAL, AccessDeniedError("no rule"))
    assert site.attempts == []
    assert site.gateway.sent(site.session) == [CloseConnection(7, Reply.NOT_ALLOWED)]


@pytest.mark.parametrize("shortage", [False, True])
def test_a_literal_that_cannot_be_connected_to_is_said(make: Make, *, shortage: bool) -> None:
    site = make(OPEN_LITERAL)
    reply = Reply.GENERAL_FAILURE if shortage else Reply.CONNECTION_REFUSED
    site.attempts[0].owner.not_connected(DialError("refused", reply, shortage=shortage))
    assert site.gateway.sent(site.session) == [CloseConnection(7, reply)]
    assert bool(site.warnings) is shortage


def test_a_bug_in_an_attempt_costs_its_flow_alone(make: Make) -> None:
    site = make(OPEN_LITERAL)
    site.attempts[0].guard(lambda: 1 / 0)
    assert site.gateway.sent(site.session) == [CloseConnection(7, CloseReason.GENERAL_FAILURE)]
    assert site.flow.ended


@pytest.mark.parametrize("by_peer", [False, True])
def test_a_client_that_leaves_ends_the_attempt(make: Make, *, by_peer: bool) -> None:
    site = make(OPEN_LITERAL)
    if by_peer:
        site.gateway.answer(site.session, CloseConnection(7, CloseReason.RESET))
    else:
        site.flow.abort(CloseReason.SHUTTING_DOWN)
    assert site.attempts[0].cancelled
    assert site.flow.attempt is None


@pytest.mark.parametrize(
    ("decision", "reply"),
    [
        (AccessDeniedError("no rule"), Reply.NOT_ALLOWED),
        (
            UnresolvedError("no address", reply=Reply.HOST_UNREACHABLE, soft=False),
            Reply.HOST_UNREACHABLE,
        ),
    ],
)
@pytest.mark.parametrize("request_", [OPEN, BIND])
async def test_what_may_not_be_reached_is_not_tried(
    make: Make, request_: OpenConnection | Bind, decision: Exception, reply: Reply
) -> None:
    site = make(request_)
    site.decision = decision
    assert await site.done() == [CloseConnection(7, reply)]
    assert site.dialled == []
    assert site.flow.ended


@pytest.mark.parametrize("shortage", [False, True])
async def test_what_cannot_be_dialled_is_said(make: Make, *, shortage: bool) -> None:
    site = make(OPEN)
    reply = Reply.GENERAL_FAILURE if shortage else Reply.CONNECTION_REFUSED
    site.result = DialError("refused", reply, shortage=shortage)
    assert await site.done() == [CloseConnection(7, reply)]
    assert bool(site.warnings) is shortage


async def test_a_bug_while_dialling_is_an_answer(make: Make) -> None:
    site = make(OPEN)
    site.result = ZeroDivisionError("a bug")
    await site.done()
    await asyncio.sleep(0)  # the task's end is told in the next turn
    assert site.flow.ended
    assert site.flow.conn_id not in site.session.core.flows.ids()


async def test_a_client_that_leaves_ends_the_dialling(make: Make) -> None:
    site = make(OPEN)
    site.gate.clear()
    task = site.flow.task
    assert task is not None
    while not site.dialled:
        await asyncio.sleep(0)
    site.gateway.answer(site.session, CloseConnection(7, CloseReason.RESET))
    await asyncio.wait([task])
    assert task.cancelled()
    assert site.flow.task is None
    assert site.gateway.sent(site.session) == []


async def test_a_reload_that_forbids_an_open_flow_ends_it(make: Make) -> None:
    site = make(OPEN)
    await site.done()
    list(site.flow.recheck())
    assert not site.flow.ended
    site.permitted = []
    list(site.flow.recheck())
    assert site.gateway.sent(site.session) == [CloseConnection(7, Reply.NOT_ALLOWED)]
    assert isinstance(site.result, Peer)
    assert site.result.reset


async def test_a_flow_that_is_still_being_decided_is_not_judged(make: Make) -> None:
    site = make(OPEN)
    site.permitted = []
    list(site.flow.recheck())
    assert not site.flow.ended
    await site.done()


async def test_a_bind_listens_waits_for_its_caller_and_takes_nobody_else(make: Make) -> None:
    site = make(BIND)
    listening = site.listening
    assert isinstance(listening, Listening)
    stranger = Peer(site.gateway.loop, ("10.9.9.9", 5))
    caller = Peer(site.gateway.loop, ("10.0.0.1", 4444))
    for each in (stranger, ConnectionAbortedError(), caller):
        listening.callers.put_nowait(each)
    assert await site.done() == [
        BindListening(7, HostPort(*LOCAL)),
        BindAccepted(7, HostPort("10.0.0.1", 4444)),
    ]
    assert stranger.reset
    assert stranger.closed
    assert site.warnings == [
        "bind-caller: BIND flow 7: refusing a caller from 10.9.9.9; expecting one from 10.0.0.1:20"
    ]
    assert listening.closed
    caller.arrives(b"hello")
    assert site.gateway.sent(site.session) == [Data(7, b"hello")]


async def test_a_bind_that_nobody_calls_ends(make: Make) -> None:
    site = make(BIND)
    assert isinstance(site.listening, Listening)
    site.listening.callers.put_nowait(TimeoutError())
    assert await site.done() == [
        BindListening(7, HostPort(*LOCAL)),
        CloseConnection(7, Reply.TTL_EXPIRED),
    ]
    assert site.listening.closed


@pytest.mark.parametrize(("code", "warned"), [(errno.EMFILE, True), (errno.ENETUNREACH, False)])
@pytest.mark.parametrize("where", ["listen", "accept"])
async def test_a_bind_that_cannot_listen_is_refused(
    make: Make, code: int, where: str, *, warned: bool
) -> None:
    site = make(BIND)
    failure = OSError(code, "failed")
    if where == "listen":
        site.listening = failure
    else:
        assert isinstance(site.listening, Listening)
        site.listening.callers.put_nowait(failure)
    assert (await site.done())[-1] == CloseConnection(7, Reply.GENERAL_FAILURE)
    assert bool(site.warnings) is warned


def test_scopes_of_peers_are_no_part_of_their_address() -> None:
    peer = Peer(Loop(), ("fe80::1%eth0", 80, 0, 2))
    assert str(tcp._peer_address(cast("socket.socket", peer))) == "fe80::1"
