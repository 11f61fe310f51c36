"""The requests that a client can make, and how a front end passes the answer to it."""

from __future__ import annotations

import socket
from typing import Final

from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import Answer
from socks_tunnel.protocol.socks5 import (
    BindRequest,
    ConnectRequest,
    Request,
    ResolveRequest,
    UdpAssociateRequest,
)

COMMANDS: Final[dict[type[Request], str]] = {
    ConnectRequest: "connect",
    BindRequest: "bind",
    UdpAssociateRequest: "udp-associate",
    ResolveRequest: "resolve",
}
"""The name of a request in metrics, logs and audit records."""


SHORTAGE: Final = "this gateway is short of file descriptors, memory or ports"
"""The sentence for a client whose request failed for want of these. The log says which."""

TOO_MANY_ASSOCIATIONS: Final = (
    "this client has as many UDP associations as limits.associations_per_client allows"
)
"""The sentence for a client that has used up its quota of associations."""


class Asker:
    """A front end whose client waits for an answer.

    One of `opened`, `associated`, `resolved` and `failed` is called, once; for a BIND, `listening`
    is called once before. `close` may be called instead of all these. A front end implements only
    the answers to what it can ask for.
    """

    __slots__ = ()
    _sock: socket.socket | None

    @property
    def idle(self) -> bool:
        """Whether it waits for nothing. Never true if its connection is for one request alone."""
        return False

    @property
    def answering(self) -> bool:
        """Whether a part of an answer is on its way. Never true if the answer is a flow."""
        return False

    def _received(self, longest: int) -> bytes | None:
        """Reads up to `longest` bytes from the client's socket; returns None if there are none.

        An end of file and the loss of the connection are dealt with here.
        """
        assert self._sock is not None
        try:
            data = self._sock.recv(longest)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            self.close()
            return None
        if not data:
            self._ended_its_side()
            return None
        return data

    def _ended_its_side(self) -> None:
        """Takes the client's end of file."""
        raise NotImplementedError

    def opened(self, bound: HostPort) -> bool:
        """Tells the client that it is connected. After that, the socket belongs to the flow.

        Returns False if the client is gone; then the front end has closed the socket.
        """
        raise NotImplementedError

    def listening(self, bound: HostPort) -> bool:
        """Tells the client where the endpoint listens for it. Returns False if it is gone."""
        raise NotImplementedError

    def associated(self, bound: HostPort) -> bool:
        """Tells the client where its UDP relay is. Returns False if it is gone."""
        raise NotImplementedError

    def resolved(self, answers: tuple[Answer, ...]) -> None:
        """Tells the client the addresses of a name or the names of an address, perhaps none."""
        raise NotImplementedError

    def failed(self, reason: int, sentence: str) -> None:
        """Tells the client that the request has failed. The front end owns the socket again."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the client's connection: the client has reset it, or its association is over."""
        raise NotImplementedError


def sentence_of(request: Request, reason: int) -> str:
    """Returns what happened in words, for clients whose protocol has a place for them."""
    match request:
        case ConnectRequest(destination=destination) | BindRequest(destination=destination):
            what = str(destination)
        case ResolveRequest(host=host):
            what = host
        case _:
            what = "the endpoint"
    match reason:
        case CloseReason.NOT_ALLOWED:
            return f"the policy does not allow {what}"
        case CloseReason.NETWORK_UNREACHABLE:
            return f"the network of {what} cannot be reached"
        case CloseReason.HOST_UNREACHABLE:
            return f"{what} cannot be reached, or its name has no address"
        case CloseReason.CONNECTION_REFUSED:
            return f"{what} refuses the connection"
        case CloseReason.TTL_EXPIRED | CloseReason.IDLE_TIMEOUT:
            return f"{what} has not answered in time"
        case CloseReason.SHUTTING_DOWN:
            return "the endpoint is shutting down"
        case CloseReason.RESOURCE_LIMIT:
            return "the endpoint has reached its limit of flows or memory"
        case _:
            return f"{what} cannot be connected"
