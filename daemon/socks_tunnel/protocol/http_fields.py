"""The fields of HTTP messages, as a proxy reads them and passes them on (RFC 9110, RFC 9112)."""

import base64
from typing import Final, NamedTuple

import h11

from socks_tunnel.protocol.addresses import HostPort, parse_host_port
from socks_tunnel.protocol.socks5 import PasswordOffered

HEAD_MAX: Final = 65_536
"""Longest head of a request or response in bytes. Kerberos tokens alone may have 48 KiB."""

CREDENTIAL_MAX: Final = 255
"""Longest user name and longest password in bytes, as in SOCKS5 (RFC 1929 section 2)."""

PSEUDONYM: Final = b"socks-tunnel"
"""What this proxy calls itself in Via (RFC 9110 section 7.6.3)."""

# RFC 9110 section 7.6.1: "Intermediaries MUST remove or replace" what Connection names, and fields
# known to need removal whether or not they are named there. The fields of proxy authentication are
# between the client and this proxy: nobody else gets them, or may ask for them.
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"upgrade",
    }
)
# RFC 9110 section 7.6.1: "A sender MUST NOT send a connection option corresponding to a field that
# is intended for all recipients of the content": naming these takes nothing away.
_NEVER_NAMED: Final = frozenset({b"host", b"content-length", b"transfer-encoding"})
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})


class RejectionError(Exception):
    """A request that is answered here; the text is for the client."""

    def __init__(self, status: int, kind: str, sentence: str, *, close: bool = False) -> None:
        super().__init__(sentence)
        self.status = status
        self.kind = kind
        self.close = close


class Target(NamedTuple):
    """`path` is None for a CONNECT, `authority` what the Host field says."""

    destination: HostPort
    authority: bytes
    path: bytes | None


def new_origin() -> h11.Connection:
    """Returns a connection to an origin, with nothing said yet."""
    return h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_MAX)


def is_new(version: bytes | None) -> bool:
    """Whether a peer of this version knows interim responses and chunks."""
    return version is not None and version >= b"1.1"


def values_of(message: h11.Request | h11.Response, name: bytes) -> list[bytes]:
    """Returns the values of all fields called `name`, which is in lower case."""
    return [value for key, value in message.headers if key == name]


def check_framing(request: h11.Request) -> bool:
    """Returns whether a body follows. Raises :class:`RejectionError` if its length is in doubt."""
    if request.http_version not in {b"1.0", b"1.1"}:
        raise RejectionError(
            505, "bad-request", "only HTTP/1.0 and HTTP/1.1 are spoken", close=True
        )
    encoded = bool(values_of(request, b"transfer-encoding"))
    lengths = values_of(request, b"content-length")
    # RFC 9112 section 6.1: a message with both "might indicate an attempt to perform request
    # smuggling", and in HTTP/1.0 its framing is "faulty".
    if encoded and (lengths or request.http_version == b"1.0"):
        raise RejectionError(400, "bad-request", "the length of the body is in doubt", close=True)
    if request.method == b"CONNECT" and (encoded or lengths not in ([], [b"0"])):
        raise RejectionError(400, "bad-request", "CONNECT has no body", close=True)
    return encoded or lengths not in ([], [b"0"])


def parse_target(request: h11.Request) -> Target:
    """Returns what the request is for. Raises :class:`RejectionError`."""
    target = request.target
    text = target.decode("ascii")  # h11 lets nothing else through
    try:
        if request.method == b"CONNECT":
            destination = parse_host_port(text)
            path = None
            authority = target
        else:
            scheme, separator, rest = text.partition("://")
            if not separator or target[:1] in {b"/", b"*"}:
                raise RejectionError(
                    400, "origin-form", "this is a proxy and has no pages of its own", close=True
                )
            if scheme.lower() != "http":
                raise RejectionError(
                    400, "bad-request", "only http is forwarded; for https use CONNECT", close=True
                )
            if "#" in rest:
                raise RejectionError(400, "bad-request", "a request has no fragment", close=True)
            end = min((at for at in map(rest.find, "/?") if at >= 0), default=len(rest))
            authority, path = rest[:end].encode(), rest[end:].encode()
            destination = _authority(rest[:end])
    except ValueError as error:
        raise RejectionError(400, "bad-request", f"no destination: {error}", close=True) from None
    if destination.port == 0:
        raise RejectionError(400, "bad-request", "port 0 is no destination", close=True)
    return Target(destination, authority, path)


def _authority(text: str) -> HostPort:
    """Returns host and port of an http URI. Raises :class:`ValueError`."""
    host, colon, port = text.rpartition(":")
    if not colon or port.endswith("]"):
        return parse_host_port(f"{text}:80")
    return parse_host_port(text if port else f"{host}:80")


def credentials_of(request: h11.Request) -> PasswordOffered:
    """Returns the user name and password (RFC 7617).

    Raises :class:`RejectionError` where there are none.
    """
    values = values_of(request, b"proxy-authorization")
    scheme, _, token = (values[0] if len(values) == 1 else b"").partition(b" ")
    try:
        text = base64.b64decode(token.strip(), validate=True).decode("utf-8")
    except ValueError:  # binascii.Error and UnicodeDecodeError are such errors
        text = ""
    name, colon, password = text.partition(":")
    too_long = max(len(name.encode()), len(password.encode())) > CREDENTIAL_MAX
    if scheme.lower() != b"basic" or not colon or too_long:
        raise RejectionError(407, "authentication", "this proxy wants a user name and a password")
    return PasswordOffered(name, password)


# --- what is passed on --------------------------------------------------------------------------


def passed_on(
    message: h11.Request | h11.Response | h11.InformationalResponse,
) -> list[tuple[bytes, bytes]]:
    """Returns the fields of a message without those that are between two neighbours."""
    named = {
        option.strip().lower()
        for key, value in message.headers
        if key == b"connection"
        for option in value.split(b",")
    }
    drop = _HOP_BY_HOP | (named - _NEVER_NAMED)
    return [(raw, value) for raw, value in message.headers.raw_items() if raw.lower() not in drop]


def _via(version: bytes) -> tuple[bytes, bytes]:
    # RFC 9110 section 7.6.3: "A proxy MUST send an appropriate Via header field [...] in each
    # message that it forwards."
    return b"Via", version + b" " + PSEUDONYM


def origin_request(request: h11.Request, target: Target) -> h11.Request:
    """Returns the request as the origin gets it. Raises :class:`RejectionError`."""
    assert target.path is not None
    path = target.path
    if not path.startswith(b"/"):
        # RFC 9112 section 3.2.4: without a path, OPTIONS is about the server as a whole.
        path = b"*" if request.method == b"OPTIONS" and not path else b"/" + path
    # RFC 9112 section 3.2.2: "the proxy MUST ignore the received Host header field (if any) and
    # instead replace it with the host information of the request-target".
    headers = [(b"Host", target.authority)]
    for raw, value in passed_on(request):
        name = raw.lower()
        if name == b"host":
            continue
        if name == b"max-forwards" and request.method in {b"TRACE", b"OPTIONS"}:
            # RFC 9110 section 7.6.2: at zero "the intermediary MUST NOT forward the request".
            if len(value) > 9 or not value.isdigit() or int(value) == 0:
                raise RejectionError(
                    501, "bad-request", "Max-Forwards ends the way of the request here"
                )
            headers.append((raw, str(int(value) - 1).encode()))
            continue
        headers.append((raw, value))
    headers.append(_via(request.http_version))
    return h11.Request(method=request.method, target=path, headers=headers)


def client_response(response: h11.Response) -> h11.Response:
    """Returns the response as the client gets it; h11 adds the framing that suits its version."""
    headers = passed_on(response)
    # RFC 9112 section 6.3: "If a message is received with both a Transfer-Encoding and a
    # Content-Length header field, the Transfer-Encoding overrides the Content-Length."
    if values_of(response, b"transfer-encoding"):
        headers = [field for field in headers if field[0].lower() not in _FRAMING]
    headers.append(_via(response.http_version))
    return h11.Response(status_code=response.status_code, headers=headers, reason=response.reason)
