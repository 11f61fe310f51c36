"""Opens one connection or one UDP association through a SOCKS5 proxy, with plain sockets."""

import os
import socket
import time
from typing import Final

from socks_tunnel.client.proxy import Proxy
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import RemoteProtocolError, Reply
from socks_tunnel.protocol.socks5 import ConnectRequest, NeedData, UdpAssociateRequest
from socks_tunnel.protocol.socks5_client import ClientConnection, ReplyReceived

EXIT_REFUSED: Final = 1
EXIT_UNAVAILABLE: Final = 69

_READ: Final = 65_536
"""Bytes read from the proxy at a time."""

_SENTENCES: Final = {
    Reply.GENERAL_FAILURE: "failed; the log of the gateway has the reason",
    Reply.NOT_ALLOWED: "is not allowed by the policy",
    Reply.NETWORK_UNREACHABLE: "is in a network that cannot be reached, or no link is up",
    Reply.HOST_UNREACHABLE: "cannot be reached, or its name is not known",
    Reply.CONNECTION_REFUSED: "refuses the connection: nothing listens on that port",
    Reply.TTL_EXPIRED: "did not answer in time",
    Reply.COMMAND_NOT_SUPPORTED: "was asked for with a command that the proxy does not have",
    Reply.ADDRESS_TYPE_NOT_SUPPORTED: "has an address of a kind that cannot be reached",
}

_ANSWERED: Final = frozenset({Reply.NOT_ALLOWED, Reply.COMMAND_NOT_SUPPORTED})
"""Replies that are a negative answer. With the others, something could not be reached."""


class OpeningError(Exception):
    """Nothing was opened. The text is a sentence, and `exit_code` the exit status."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def open_stream(proxy: Proxy, destination: HostPort, timeout: float) -> tuple[socket.socket, bytes]:
    """Returns a blocking connection to `destination`, and the bytes that the target has sent.

    Raises :class:`OpeningError` if that is not open within `timeout` seconds.
    """
    sock, _, early = _open(proxy, ConnectRequest(destination), str(destination), timeout)
    sock.settimeout(None)
    return sock, early


def open_association(proxy: Proxy, timeout: float) -> tuple[socket.socket, socket.socket]:
    """Returns the control connection of an association, and a UDP socket to its relay.

    The association lives as long as the control connection. Raises :class:`OpeningError`.
    """
    sock, bound, _ = _open(proxy, UdpAssociateRequest(None), "the UDP relay", timeout)
    try:
        # RFC 1928 section 6: datagrams go to BND.ADDR. If it is unspecified, the proxy's address.
        host = bound.host
        if host in {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
            host = sock.getpeername()[0]
        relay = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
        try:
            relay.connect((host, bound.port))
        except OSError:
            relay.close()
            raise
    except OSError as error:
        sock.close()
        sentence = f"the UDP relay on {bound} cannot be reached: {_why(error)}"
        raise OpeningError(sentence, EXIT_UNAVAILABLE) from None
    sock.settimeout(None)
    return sock, relay


def _open(
    proxy: Proxy, request: ConnectRequest | UdpAssociateRequest, what: str, timeout: float
) -> tuple[socket.socket, HostPort, bytes]:
    until = time.monotonic() + timeout
    try:
        sock = proxy.connect(timeout)
    except OSError as error:
        sentence = f"the proxy on {proxy} cannot be reached: {_why(error)}"
        raise OpeningError(sentence, EXIT_UNAVAILABLE) from None
    try:
        reply, early = _converse(sock, proxy, request, until)
    except TimeoutError:
        sock.close()
        sentence = f"{what} was not open within {timeout:g} s"
        raise OpeningError(sentence, EXIT_UNAVAILABLE) from None
    except OSError as error:
        sock.close()
        sentence = f"the proxy on {proxy} closed the connection: {_why(error)}"
        raise OpeningError(sentence, EXIT_UNAVAILABLE) from None
    except RemoteProtocolError as error:
        sock.close()
        sentence = f"the proxy on {proxy}: {_proxy_error(error, proxy)}"
        raise OpeningError(sentence, EXIT_REFUSED) from None
    if reply.reply != Reply.SUCCEEDED:
        sock.close()
        raise OpeningError(f"{what} {_sentence(reply.reply)}", _exit_code(reply.reply))
    return sock, reply.bound, early


def _converse(
    sock: socket.socket,
    proxy: Proxy,
    request: ConnectRequest | UdpAssociateRequest,
    until: float,
) -> tuple[ReplyReceived, bytes]:
    client = ClientConnection(request, username=proxy.username, password=proxy.password)
    while True:
        sock.settimeout(max(until - time.monotonic(), 0.001))
        if data := client.data_to_send():
            sock.sendall(data)
        event = client.next_event()
        if not isinstance(event, NeedData):
            return event, client.trailing_data()
        if data := client.data_to_send():  # the method or the password was accepted
            sock.sendall(data)
        received = sock.recv(_READ)
        if not received:
            raise ConnectionResetError("it closed the connection without a reply")
        client.receive_data(received)


def _proxy_error(error: RemoteProtocolError, proxy: Proxy) -> str:
    if error.kind == "no-acceptable-method" and proxy.username is None:
        return (
            "it asks for a user name and password: set SOCKS_TUNNEL_USERNAME and "
            "SOCKS_TUNNEL_PASSWORD"
        )
    return str(error)


def _sentence(code: int) -> str:
    try:
        return _SENTENCES[Reply(code)]
    except ValueError:
        return f"failed: the proxy answers with the unknown code 0x{code:02x}"


def _exit_code(code: int) -> int:
    return EXIT_REFUSED if code in _ANSWERED else EXIT_UNAVAILABLE


def _why(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error) or type(error).__name__
