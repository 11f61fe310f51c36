"""Errors and codes of the SOCKS5 and tunnel protocols.

Two kinds of error leave this package: :class:`LocalProtocolError` is a bug on our side (a call that
the state does not allow), :class:`RemoteProtocolError` is the fault of whoever sent the bytes.
"""

from enum import IntEnum


class Reply(IntEnum):
    """SOCKS5 reply codes (RFC 1928 section 6)."""

    SUCCEEDED = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08


class CloseReason(IntEnum):
    """REASON of CLOSE_CONNECTION, UDP_ASSOCIATE_CLOSED and GOAWAY (docs/protocol.md section 3).

    Values below 0x10 are the SOCKS5 reply codes, to be handed to the client as they are.
    """

    ORDERLY = 0x00
    GENERAL_FAILURE = 0x01
    NOT_ALLOWED = 0x02
    NETWORK_UNREACHABLE = 0x03
    HOST_UNREACHABLE = 0x04
    CONNECTION_REFUSED = 0x05
    TTL_EXPIRED = 0x06
    COMMAND_NOT_SUPPORTED = 0x07
    ADDRESS_TYPE_NOT_SUPPORTED = 0x08
    RESET = 0x10
    IDLE_TIMEOUT = 0x11
    SHUTTING_DOWN = 0x12
    WORKER_LOST = 0x13
    RESUME_FAILED = 0x14
    PROTOCOL_ERROR = 0x15
    UNKNOWN_FLOW = 0x16
    RESOURCE_LIMIT = 0x17


def reply_of(reason: int) -> Reply:
    """Returns the SOCKS5 reply for a flow that was closed with `reason` before it was opened.

    A SOCKS client knows only the codes of RFC 1928; every other reason is a general failure to it.
    An orderly close (0x00) in place of an answer is one too: success must never be reported.
    """
    if 0 < reason <= Reply.ADDRESS_TYPE_NOT_SUPPORTED:
        return Reply(reason)
    return Reply.GENERAL_FAILURE


class ProtocolError(Exception):
    """Base of both protocol errors."""


class LocalProtocolError(ProtocolError):
    """We broke the protocol: a call that the current state does not allow. A bug of ours."""


class RemoteProtocolError(ProtocolError):
    """The peer broke the protocol.

    `kind` is a short constant name for metrics and for "log once per kind". `reply` is the SOCKS5
    reply that a SOCKS client should get, `conn_id` the flow that the message named (0: none or
    unreadable).
    """

    def __init__(
        self,
        message: str,
        *,
        kind: str,
        reply: Reply = Reply.GENERAL_FAILURE,
        conn_id: int = 0,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.reply = reply
        self.conn_id = conn_id
