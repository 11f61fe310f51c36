"""What a client can ask for, and how a front end tells it the answer."""

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
"""What a request is called in metrics, logs and audit records."""


class Asker:
    """A front end whose client waits for an answer.

    It is called once with `opened`, `associated`, `resolved` or `failed`, before that once with
    `listening` for a BIND, or with `close` instead of all that. What a front end cannot ask for it
    need not be able to answer.
    """

    __slots__ = ()
    _sock: socket.socket | None

    @property
    def idle(self) -> bool:
        """Whether it waits for nothing. Never, if its connection is for one request alone."""
        return False

    @property
    def answering(self) -> bool:
        """Whether a part of an answer is on its way. Never, if the answer is a flow."""
        return False

    def _received(self, longest: int) -> bytes | None:
        """Reads the client's socket. Returns None if there is nothing to do for it.

        Its end of file and the loss of its connection have been dealt with then.
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
        """The client's end of file came."""
        raise NotImplementedError

    def opened(self, bound: HostPort) -> bool:
        """Tells the client that it is connected; the socket belongs to the flow then.

        Returns False if the client is gone; the front end has closed the socket.
        """
        raise NotImplementedError

    def listening(self, bound: HostPort) -> bool:
        """Tells the client where the endpoint listens for it. Returns False if it is gone."""
        raise NotImplementedError

    def associated(self, bound: HostPort) -> bool:
        """Tells the client where its UDP relay is. Returns False if it is gone."""
        raise NotImplementedError

    def resolved(self, answers: tuple[Answer, ...]) -> None:
        """Tells the client what was found out about a name or an address, perhaps nothing."""
        raise NotImplementedError

    def failed(self, reason: int, sentence: str) -> None:
        """Tells the client that the request has failed. The front end owns the socket again."""
        raise NotImplementedError

    def close(self) -> None:
        """Closes the client's connection: the client has reset it, or its association is over."""
        raise NotImplementedError


def sentence_of(request: Request, reason: int) -> str:
    """Returns what happened, for clients that can be told more than a number."""
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
            return "the endpoint holds as much as it may"
        case _:
            return f"{what} could not be connected"
