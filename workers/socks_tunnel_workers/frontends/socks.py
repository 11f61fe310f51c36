"""A client on the proxy's port, from its first byte to the request that it makes.

One port serves three protocols; the first byte says which one the client speaks::

    05              SOCKS5
    04              SOCKS4 and SOCKS4a
    A-Z, a-z        HTTP (a method): handed over to frontends/http.py
    anything else   the connection is closed

`socks.protocols` says which of them are enabled. Both versions of SOCKS are served here: they
differ only in their bytes, which the cores in :mod:`socks_tunnel.protocol` read and write.
"""

from __future__ import annotations

import asyncio
import importlib
import socket
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

from socks_tunnel.protocol import socks4, socks5
from socks_tunnel.protocol.addresses import UNSPECIFIED, HostPort, parse_ip
from socks_tunnel.protocol.errors import RemoteProtocolError, Reply, reply_of
from socks_tunnel.protocol.messages import Answer
from socks_tunnel.protocol.socks5 import (
    NEED_DATA,
    GreetingReceived,
    PasswordOffered,
    Request,
)
from socks_tunnel_workers.frontends.asking import COMMANDS, Asker
from socks_tunnel_workers.frontends.identity import identify
from socks_tunnel_workers.frontends.logins import Login, Verdict
from socks_tunnel_workers.frontends.opening import Opening
from socks_tunnel_workers.sockets import linger_close, reset

if TYPE_CHECKING:
    from socks_tunnel_workers.frontends.clients import Clients

HANDSHAKE_SECONDS = 30.0
"""Seconds in which a client must have made its request."""

LOGIN_BYTES_MAX: Final = 16_384
"""Bytes that a client may send ahead while its password is checked."""

_READ: Final = 4096
"""Bytes read from a client's socket at a time: more than the longest SOCKS5 handshake."""

_ANSWERED: Final = frozenset({"command", "address-type", "bad-name", "bad-request"})
"""Kinds of errors in a request for which the client gets a reply."""

Core: TypeAlias = socks5.ServerConnection | socks4.ServerConnection


class SocksSession(Asker):
    """A client's connection until it becomes a flow; for UDP, as long as the association lives.

    It only reacts: to its socket, to its timer, to the verdict about a password, and to the
    :class:`Opening` of its request. `address` is what accept(2) returned.
    """

    __slots__ = (
        "_clients",
        "_command",
        "_core",
        "_login",
        "_opening",
        "_sock",
        "_started",
        "_timer",
        "who",
    )

    def __init__(self, clients: Clients, sock: socket.socket, address: object) -> None:
        self._clients = clients
        self._sock: socket.socket | None = sock
        self.who = identify(sock, address)
        self._core: Core | None = None
        self._command = "unknown"
        self._login: Login | None = None
        self._opening: Opening | None = None
        self._started = clients.loop.time()
        self._timer: asyncio.TimerHandle | None = clients.loop.call_later(
            HANDSHAKE_SECONDS, clients.guard, self, self._handshake_timeout
        )
        clients.opening.add(self)
        clients.loop.add_reader(sock, clients.guard, self, self._readable)

    # --- handshake ------------------------------------------------------------------------------

    def _readable(self) -> None:
        data = self._received(_READ)
        if data is None:
            return
        if self._core is None and not self._choose(data):
            return
        assert self._core is not None
        self._core.receive_data(data)
        if self._login is None:
            self._advance()
        elif self._core.buffered > LOGIN_BYTES_MAX:
            self._stop_reading()

    def _choose(self, data: bytes) -> bool:
        """Makes the core for the protocol of the first byte. Returns False if it is not SOCKS."""
        settings = self._clients.settings
        spoken = settings.config.socks.protocols
        first = data[0]
        require_password = settings.passwords is not None
        if first == socks5.VERSION and "socks5" in spoken:
            self._core = socks5.ServerConnection(require_password=require_password)
        elif first == socks4.VERSION and "socks4" in spoken:
            self._core = socks4.ServerConnection(require_password=require_password)
        elif chr(first).isascii() and chr(first).isalpha() and "http" in spoken:
            self._hand_over(data)
            return False
        else:
            self._count_rejected("unknown-protocol")
            self._end()
            return False
        return True

    def _hand_over(self, data: bytes) -> None:
        """Leaves the client to the HTTP front end, which is imported for the first such client."""
        sock, self._sock = self._sock, None
        assert sock is not None
        self._clients.loop.remove_reader(sock)
        self._forget()
        module = importlib.import_module("socks_tunnel_workers.frontends.http")
        module.HttpSession(self._clients, sock, self.who, data, started=self._started)

    def _ended_its_side(self) -> None:
        """Closes the connection, because the end of file came before the request.

        A client that has sent everything at once, with its end of file, still gets its answer.
        """
        if self._login is not None and self._core is not None and self._core.buffered:
            self._stop_reading()
            return
        self._count_rejected("incomplete")
        self.close()

    def _advance(self) -> None:
        core = self._core
        assert core is not None
        while True:
            try:
                event = core.next_event()
            except RemoteProtocolError as error:
                self._handshake_failed(core, error)
                return
            self._flush()
            if self._sock is None or event is NEED_DATA:
                return
            if isinstance(event, PasswordOffered):
                self._check(event)
                return
            if not isinstance(event, GreetingReceived):
                self._requested(core, event)
                return

    def _check(self, offer: PasswordOffered) -> None:
        login = self._clients.logins.check(
            self.who,
            offer.username,
            offer.password,
            partial(self._clients.guard, self, self._password_checked),
        )
        if login.answer is not None:  # else the verdict has come already
            self._login = login

    def _password_checked(self, verdict: Verdict) -> None:
        self._login = None
        if self._sock is None:
            return
        if verdict is Verdict.BUSY:
            self._count_rejected("login-busy")
        assert isinstance(self._core, socks5.ServerConnection)
        self._core.accept_password(verdict is Verdict.RIGHT)
        clients = self._clients
        clients.loop.add_reader(self._sock, clients.guard, self, self._readable)
        self._advance()

    def _handshake_failed(self, core: Core, error: RemoteProtocolError) -> None:
        self._count_rejected(error.kind)
        if error.kind in _ANSWERED:
            self._clients.counters.count(
                "requests_total", core.command_name, error.reply.name.lower()
            )
        self._flush()
        self._end()

    def _handshake_timeout(self) -> None:
        self._timer = None
        self._count_rejected("timeout")
        self.close()

    def _count_rejected(self, reason: str) -> None:
        self._clients.counters.count("socks_rejected_total", reason)

    # --- the request ----------------------------------------------------------------------------

    def _requested(self, core: Core, request: Request) -> None:
        assert self._sock is not None
        self._cancel_timer()
        self._command = COMMANDS[type(request)]
        self._opening = Opening(
            self._clients,
            self,
            request,
            self.who,
            self._sock,
            early=core.trailing_data(),
            started=self._started,
        )
        self._opening.start()

    # --- answers (Asker) ------------------------------------------------------------------------

    def opened(self, bound: HostPort) -> bool:
        """Replies with success. From here on the socket is the flow's."""
        alive = self._reply(Reply.SUCCEEDED, bound)
        self._sock = None
        self._forget()
        return alive

    def listening(self, bound: HostPort) -> bool:
        """Sends the first reply to a BIND."""
        return self._reply(Reply.SUCCEEDED, bound)

    def associated(self, bound: HostPort) -> bool:
        """Replies with the relay's address. From here on the association counts as a flow."""
        alive = self._reply(Reply.SUCCEEDED, bound)
        self._clients.opening.discard(self)
        return alive

    def resolved(self, answers: tuple[Answer, ...]) -> None:
        """Replies with one answer: an IPv4 address if there is one, as most clients expect."""
        hosts = [answer.host for answer in answers]
        plain = [host for host in hosts if (ip := parse_ip(host)) is not None and ip.version == 4]
        host = next(iter(plain or hosts), None)
        if host is None:
            self._reply(Reply.HOST_UNREACHABLE)
        else:
            self._reply(Reply.SUCCEEDED, HostPort(host, 0))
        self._end()

    def failed(self, reason: int, sentence: str) -> None:
        """Replies that the request failed, and closes once the client has the reply."""
        del sentence  # SOCKS has codes only
        self._reply(reply_of(reason))
        self._end()

    # --- replies and the end --------------------------------------------------------------------

    def _reply(self, reply: Reply, bound: HostPort = UNSPECIFIED) -> bool:
        assert self._core is not None
        self._clients.counters.count("requests_total", self._command, reply.name.lower())
        self._core.reply(reply, bound)
        return self._flush()

    def _flush(self) -> bool:
        """Sends the replies of the core; returns False if the client is gone.

        These are a few bytes. A client whose socket does not take them does not read, and is reset.
        """
        assert self._core is not None
        data = self._core.data_to_send()
        if self._sock is None:
            return False
        if not data:
            return True
        try:
            sent = self._sock.send(data)
        except OSError:
            sent = -1
        if sent == len(data):
            return True
        self._stop_reading()
        reset(self._sock)
        self._sock = None
        self._forget()
        return False

    def _end(self) -> None:
        """Closes the connection so that the last reply arrives."""
        if self._sock is not None:
            self._stop_reading()
            linger_close(self._clients.loop, self._sock)
            self._sock = None
        self._forget()

    def close(self) -> None:
        """Closes the connection without a reply, and cancels the request."""
        if self._opening is not None:
            self._opening.cancel()
        if self._sock is not None:
            self._stop_reading()
            self._sock.close()
            self._sock = None
        self._forget()

    def _forget(self) -> None:
        self._cancel_timer()
        login, self._login = self._login, None
        if login is not None:
            login.end()
        self._clients.opening.discard(self)

    def _stop_reading(self) -> None:
        if self._sock is not None:
            self._clients.loop.remove_reader(self._sock)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
