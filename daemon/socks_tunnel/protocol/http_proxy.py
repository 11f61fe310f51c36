"""An HTTP/1.1 proxy (RFC 9110, RFC 9112), sans-IO: one client connection and the origin behind it.

`h11` parses and writes the messages; this module decides what a proxy does with them::

    client                      proxy                                  origin
    CONNECT host:port     ->    ConnectRequest
                          <-    200, then the bytes pass as they are
    GET http://host/path  ->    ForwardRequest  ->  GET /path, Host: host, Via
                          <-    the response    <-  without hop-by-hop fields
    GET /path             ->    400, and the connection is closed

The last line is what keeps web pages out: a page that a browser shows can send requests of its own
choice to a port on loopback, but only in origin form. Only a program that was told to use a proxy
sends the absolute form or CONNECT.

Theory of the state machine. Requests of one client connection are taken one after the other; an
exchange is over when its response has been passed on whole::

    HEAD        bytes: a request            -> VERDICT | ASKED | HEAD (refused)
    VERDICT     accept_password()           -> ASKED | HEAD (refused)
    ASKED       tunnel_opened(), refuse()   -> TUNNEL | HEAD
                forwarding: bytes both ways -> HEAD (response over) | FAILED
    TUNNEL      nothing: the shell relays
    FAILED      nothing: the shell closes

Request smuggling (RFC 9112 section 11.2) needs two readers of the same bytes. Nothing is passed on
here as it came: `h11` reads each message by its framing and writes it anew. What has two framings
(Transfer-Encoding with Content-Length, or in HTTP/1.0) is refused.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final, TypeAlias

import h11

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import (
    CloseReason,
    LocalProtocolError,
    RemoteProtocolError,
)
from socks_tunnel.protocol.http_fields import (
    HEAD_MAX,
    RejectionError,
    Target,
    check_framing,
    client_response,
    credentials_of,
    is_new,
    new_origin,
    origin_request,
    parse_target,
    passed_on,
    values_of,
)
from socks_tunnel.protocol.socks5 import NEED_DATA, ConnectRequest, NeedData, PasswordOffered

# RFC 9110 section 9.2.1: the methods that are safe, and so may be sent twice.
_REPEATABLE: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE"})

_STATUS: Final[dict[int, int]] = {
    CloseReason.NOT_ALLOWED: 403,
    CloseReason.TTL_EXPIRED: 504,
    CloseReason.IDLE_TIMEOUT: 504,
    CloseReason.SHUTTING_DOWN: 503,
    CloseReason.WORKER_LOST: 503,
    CloseReason.RESUME_FAILED: 503,
    CloseReason.RESOURCE_LIMIT: 503,
}
_NO_HTTP: Final = {
    431: "the head of the request is too long",
    501: "chunked is the only transfer coding that is spoken",
}
_PHRASES: Final = {
    400: b"Bad Request",
    403: b"Forbidden",
    405: b"Method Not Allowed",
    407: b"Proxy Authentication Required",
    431: b"Request Header Fields Too Large",
    501: b"Not Implemented",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
    505: b"HTTP Version Not Supported",
}


def status_of(reason: int) -> int:
    """Returns the status for a flow that was closed with `reason` before it was opened.

    403 for what the policy refuses, 504 where nobody answered in time, 503 for a want of resources
    on the way, and 502 for everything that the far side could not reach.
    """
    return _STATUS.get(reason, 502)


# --- events -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """The client wants `method` done at the origin `destination`.

    The bytes for the origin are in `data_to_origin`, the first ones already now.
    """

    destination: HostPort
    method: str
    reused: bool = False
    """Whether the connection to the origin that the exchange before this one left is used."""


@dataclass(frozen=True, slots=True)
class RequestRejected:
    """A request was answered here, with `status`: `kind` says why, in a word for a metric."""

    kind: str
    status: int


@dataclass(frozen=True, slots=True)
class ExchangeEnded:
    """A response is over. What cannot be kept is closed once its bytes have been sent.

    `cut` says that the origin has not had the whole request, or we not the whole response: its
    connection is to be reset, so that it takes nothing for whole.
    """

    keep_client: bool
    keep_origin: bool
    cut: bool = False


@dataclass(frozen=True, slots=True)
class ResponseBroken:
    """The origin failed in the middle of its response: the client must not see a clean end."""


Event: TypeAlias = (
    PasswordOffered
    | ConnectRequest
    | ForwardRequest
    | RequestRejected
    | ExchangeEnded
    | ResponseBroken
)


_WHOLE: Final = {h11.IDLE, h11.DONE, h11.MUST_CLOSE, h11.CLOSED}
"""States of a side that is not in the middle of a message."""


class _State(Enum):
    HEAD = auto()
    VERDICT = auto()
    ASKED = auto()
    TUNNEL = auto()
    FAILED = auto()


class ProxyConnection:
    """The proxy's side of one HTTP client connection.

    The shell feeds `receive_data`, takes events with `next_event` until that returns NEED_DATA, and
    sends what `data_to_send` and `data_to_origin` return, after each step. It reads no more from
    one side while the other side does not take what is there: so nothing piles up here.
    """

    def __init__(self, *, require_password: bool = False) -> None:
        self._require_password = require_password
        self._client = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        self._origin: h11.Connection | None = None
        self._origin_name: HostPort | None = None
        self._state = _State.HEAD
        self._asked: h11.Request | None = None
        self._request: ConnectRequest | ForwardRequest | None = None
        self._parsed = Target(HostPort("", 0), b"", None)
        self._framed = False
        self._chunked = False
        self._answered = False
        self._bytes_taken = False
        self._repeatable: h11.Request | None = None
        self._events: deque[Event] = deque()
        self._error: RemoteProtocolError | None = None
        self._to_client = bytearray()
        self._to_origin = bytearray()

    # --- bytes ----------------------------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Stores what the client sent; empty for its end."""
        if self._error is None and self._state is not _State.TUNNEL:
            self._client.receive_data(data)

    def data_to_send(self) -> bytes:
        """Returns the bytes for the client, each of them once."""
        data = bytes(self._to_client)
        self._to_client.clear()
        return data

    def data_to_origin(self) -> bytes:
        """Returns the bytes for the origin, each of them once."""
        data = bytes(self._to_origin)
        self._to_origin.clear()
        return data

    def trailing_data(self) -> bytes:
        """Returns what came after a CONNECT (early data); empty for any other request.

        Called once, when the shell takes the connection over; if the CONNECT is refused after all,
        the connection cannot go on: nobody knows what those bytes were meant for.
        """
        if not isinstance(self._request, ConnectRequest) or self._state is not _State.ASKED:
            return b""
        data, _ = self._client.trailing_data
        self._bytes_taken = bool(data)
        return bytes(data)

    @property
    def idle(self) -> bool:
        """Whether no byte of a next request has come."""
        return self._state is _State.HEAD and not self._client.trailing_data[0]

    @property
    def request_whole(self) -> bool:
        """Whether there is a request of which nothing is missing: the client may end its side."""
        missing = self._client.their_state in {h11.SEND_BODY, h11.ERROR}
        return not missing and self._state is not _State.HEAD

    # --- events ---------------------------------------------------------------------------------

    def next_event(self) -> Event | NeedData:
        """Returns the next event, or NEED_DATA.

        Raises :class:`RemoteProtocolError`, again at each later call, when the client's bytes are
        no HTTP; its `kind` is `bad-request`. The answer, if one is still due, is in `data_to_send`.
        """
        while True:
            if self._events:
                return self._events.popleft()
            if self._error is not None:
                raise self._error
            if self._state in {_State.VERDICT, _State.TUNNEL, _State.FAILED}:
                return NEED_DATA
            if not (self._from_origin() or self._from_client()):
                return NEED_DATA

    def _from_client(self) -> bool:
        """Takes one step with what the client sent; says whether there was one."""
        try:
            event = self._client.next_event()
        except h11.RemoteProtocolError as error:
            self._client_failed(error)
            return True
        match event:
            case h11.Request():
                self._requested(event)
            case h11.Data(data=data):
                self._send_to_origin(h11.Data(data=bytes(data)))
            case h11.EndOfMessage():
                self._send_to_origin(event)
            case _:  # NEED_DATA, PAUSED, ConnectionClosed
                return False
        return True

    def _client_failed(self, error: h11.RemoteProtocolError) -> None:
        if self._client.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            # What h11 says quotes the client's bytes, and depends on how they were cut.
            status = error.error_status_hint or 400
            self._respond(status, _NO_HTTP.get(status, "this is no HTTP request"), close=True)
        self._origin = None
        self._state = _State.FAILED
        self._error = RemoteProtocolError("the client does not speak HTTP", kind="bad-request")

    # --- requests -------------------------------------------------------------------------------

    def _requested(self, request: h11.Request) -> None:
        self._asked = request
        self._request = None
        self._answered = self._bytes_taken = False
        self._repeatable = None
        try:
            self._framed = check_framing(request)
            if not self._framed:
                self._client.next_event()  # EndOfMessage follows at once, without another byte
            self._parsed = parse_target(request)
            credentials = credentials_of(request) if self._require_password else None
        except RejectionError as rejection:
            self._reject(rejection)
            return
        if credentials is None:
            self._proceed()
        else:
            self._state = _State.VERDICT
            self._events.append(credentials)

    def accept_password(self, ok: bool) -> None:
        """Answers PasswordOffered. Raises :class:`LocalProtocolError` if none waits for that."""
        if self._state is not _State.VERDICT:
            raise LocalProtocolError("no password is waiting for an answer")
        if ok:
            self._proceed()
        else:
            self._reject(RejectionError(407, "authentication", "wrong user name or password"))

    def _proceed(self) -> None:
        """Tells the shell what to do, once it is clear that the client may ask for it."""
        assert self._asked is not None
        self._state = _State.ASKED
        target = self._parsed
        if target.path is None:
            self._request = ConnectRequest(target.destination)
            self._events.append(self._request)
            return
        try:
            head = origin_request(self._asked, target)
        except RejectionError as rejection:
            self._reject(rejection)
            return
        reused = self._origin is not None and self._origin_name == target.destination
        if not reused:
            self._origin = new_origin()
            self._origin_name = target.destination
        self._request = ForwardRequest(
            target.destination, self._asked.method.decode("ascii"), reused=reused
        )
        self._events.append(self._request)
        if reused and not self._framed and self._asked.method in _REPEATABLE:
            self._repeatable = head
        else:
            self._repeatable = None
        self._send_to_origin(head)
        if not self._framed:
            self._send_to_origin(h11.EndOfMessage())

    def _send_to_origin(self, event: h11.Event) -> None:
        # A request that is refused, or answered before its body is over, has been given up by then.
        assert self._origin is not None
        data = self._origin.send(event)
        if data:
            self._to_origin += data

    # --- the origin -----------------------------------------------------------------------------

    def receive_from_origin(self, data: bytes) -> bool:
        """Stores what the origin sent, not empty.

        Returns False if nothing was asked of it: its connection is to be closed, since nobody knows
        what comes next on it (RFC 9112 section 9.2).
        """
        if self._origin is None or self._state is not _State.ASKED:
            self._origin = None
            return False
        self._repeatable = None
        self._origin.receive_data(data)
        return True

    def origin_ended(self, *, clean: bool) -> bool:
        """Takes the end of the connection to the origin; `clean` if it was a FIN, not a reset.

        Returns True if the request is to be sent anew, on a new connection: the old one was kept
        from an earlier exchange and ended before it brought a byte, and the request changes nothing
        (RFC 9112 section 9.3.1). The bytes are in `data_to_origin`.
        """
        if self._state is not _State.ASKED or self._origin is None:
            self._origin = None
            return False
        if self._repeatable is not None:
            head, self._repeatable = self._repeatable, None
            self._to_origin.clear()
            self._origin = new_origin()
            self._send_to_origin(head)
            self._send_to_origin(h11.EndOfMessage())
            return True
        if clean and self._answered:
            self._origin.receive_data(b"")  # the end of a body without a length, or too early
        else:
            self._origin_failed("the origin ended the connection without an answer")
        return False

    def _from_origin(self) -> bool:
        """Takes one step with what the origin sent; says whether there was one."""
        origin, client = self._origin, self._client
        if origin is None or self._state is not _State.ASKED:
            return False
        try:
            event = origin.next_event()
        except h11.RemoteProtocolError:  # also for 101: Upgrade is not passed on
            self._origin_failed("the origin's answer is no HTTP")
            return True
        match event:
            case h11.InformationalResponse():
                if is_new(client.their_http_version):
                    self._to_client += client.send(
                        h11.InformationalResponse(
                            status_code=event.status_code,
                            headers=passed_on(event),
                            reason=event.reason,
                        )
                    )
            case h11.Response():
                self._answered = True
                # A trailer section can be passed on if the body comes in chunks and leaves so.
                self._chunked = is_new(client.their_http_version) and bool(
                    values_of(event, b"transfer-encoding")
                )
                self._to_client += client.send(client_response(event)) or b""
            case h11.Data(data=data):
                self._to_client += client.send(h11.Data(data=bytes(data))) or b""
            case h11.EndOfMessage(headers=trailers):
                fields = list(trailers.raw_items()) if self._chunked else []
                self._to_client += client.send(h11.EndOfMessage(headers=fields)) or b""
                self._exchange_over()
            case _:  # NEED_DATA, PAUSED, ConnectionClosed
                return False
        return True

    def _origin_failed(self, sentence: str) -> None:
        self._origin = None
        if self._answered:
            self._state = _State.FAILED
            self._events.append(ResponseBroken())
        else:
            self._respond(502, sentence)

    # --- answers of our own ---------------------------------------------------------------------

    def tunnel_opened(self) -> None:
        """Queues the success of a CONNECT; from here on the shell relays bytes."""
        if self._state is not _State.ASKED or not isinstance(self._request, ConnectRequest):
            raise LocalProtocolError("no CONNECT is waiting for an answer")
        # RFC 9110 section 9.3.6: "A server MUST NOT send any Transfer-Encoding or Content-Length
        # header fields in a 2xx (Successful) response to CONNECT."
        self._to_client += b"HTTP/1.1 200 Connection established\r\n\r\n"
        self._state = _State.TUNNEL

    def refuse(self, status: int, sentence: str, *, close: bool = False) -> None:
        """Answers the request with an error, in one line of text; `close` if it is the last one."""
        if self._state not in {_State.VERDICT, _State.ASKED} or self._answered:
            raise LocalProtocolError("no request is waiting for an answer")
        self._origin = None
        self._respond(status, sentence, close=close or self._bytes_taken)

    def _reject(self, rejection: RejectionError) -> None:
        self._events.append(RequestRejected(rejection.kind, rejection.status))
        self._respond(rejection.status, str(rejection), close=rejection.close)

    def _respond(self, status: int, sentence: str, *, close: bool = False) -> None:
        body = f"socks-tunnel: {sentence}\n".encode()
        headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", str(len(body)).encode()),
        ]
        if status == 407:
            # RFC 7617 section 2.1: charset="UTF-8" asks the client for that encoding.
            headers.append((b"Proxy-Authenticate", b'Basic realm="socks-tunnel", charset="UTF-8"'))
        if close or self._client.their_state is h11.SEND_BODY:
            headers.append((b"Connection", b"close"))
        response = h11.Response(
            status_code=status, headers=headers, reason=_PHRASES.get(status, b"Error")
        )
        self._to_client += self._client.send(response) or b""
        if self._asked is None or self._asked.method != b"HEAD":
            self._to_client += self._client.send(h11.Data(data=body)) or b""
        self._to_client += self._client.send(h11.EndOfMessage()) or b""
        self._exchange_over()

    def _exchange_over(self) -> None:
        client, origin = self._client, self._origin
        keep_client = client.our_state is h11.DONE and client.their_state is h11.DONE
        keep_origin = origin is not None and origin.our_state is h11.DONE
        keep_origin = keep_origin and origin is not None and origin.their_state is h11.DONE
        # RFC 9112 section 9.2: what comes without a request is no response to a later one.
        keep_origin = keep_origin and origin is not None and not origin.trailing_data[0]
        cut = origin is not None and not {origin.our_state, origin.their_state} <= _WHOLE
        if keep_client:
            client.start_next_cycle()
            self._state = _State.HEAD
            self._asked = None
        else:
            self._state = _State.FAILED
        if keep_origin and keep_client and origin is not None:
            origin.start_next_cycle()
        else:
            self._origin = None
        self._to_origin.clear()
        self._events.append(ExchangeEnded(keep_client, self._origin is not None, cut))
