"""All private names of aiortc and aioice on which this program relies.

Imported before anything else of this package. The import checks the release line, and that each
name exists with the signature that this code was written for. A mismatch raises
:class:`UnsupportedAiortcError` with a sentence, so that an incompatible version fails at start and
not on a link. Then it installs, once per process, two replacements that aioice needs to be safe and
useful here: the datagram filter below, and the ICE connection of :mod:`socks_tunnel.peer.ice`.
"""

import inspect
import logging
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NamedTuple

import aioice.ice
import aioice.stun
import aioice.turn
import aiortc.rtcdtlstransport
import aiortc.rtcicetransport
from aiortc import (
    InvalidStateError,
    RTCDataChannel,
    RTCDtlsTransport,
    RTCIceTransport,
    RTCPeerConnection,
    RTCSctpTransport,
)

# pyOpenSSL is aiortc's dependency, not ours: its error is taken from where aiortc catches it.
_SSLError: Final[type[Exception]] = vars(aiortc.rtcdtlstransport)["SSL"].Error

_log = logging.getLogger(__name__)

AIORTC_RELEASE: Final = "1.16."
AIOICE_RELEASE: Final = "0.13."

DATAGRAM_QUEUE_MAX: Final = 4096
"""Datagrams that may wait for DTLS on one connection. Further ones are dropped, as by a full socket
buffer (aioice's queue has no bound of its own)."""


CONSENT_FAILURES: Final = 1 << 30
"""Failed consent checks (RFC 7675) in a row after which aioice closes a connection: never.

aioice gives each check 0.5 s, and closes after six failures. A healthy link would be cut if its
round trip were longer for half a minute, as under a burst on a slow host. PING notices a dead peer
sooner (docs/protocol.md section 5), and is answered by the same loop that moves the bytes."""


class UnsupportedAiortcError(ImportError):
    """The private names of the installed aiortc or aioice are not known."""


_FUNCTIONS: Final[tuple[tuple[Any, str, tuple[str, ...]], ...]] = (
    (RTCDataChannel, "_addBufferedAmount", ("self", "amount")),
    (RTCDataChannel, "send", ("self", "data")),
    (RTCSctpTransport, "_handle_data", ("self", "data")),
    (aioice.ice.StunProtocol, "datagram_received", ("self", "data", "addr")),
    (aioice.ice.Connection, "data_received", ("self", "data", "component")),
    (aioice.ice.Connection, "gather_candidates", ("self",)),
    (aioice.ice.Connection, "_pair_remote_candidate", ("self", "remote_candidate")),
    (aioice.ice.Connection, "_unfreeze_initial", ("self",)),
    (aioice.ice.Connection, "build_request", ("self", "pair", "nominate")),
    (aioice.ice.Connection, "check_incoming", ("self", "message", "addr", "protocol")),
    (aioice.ice.Connection, "check_start", ("self", "pair")),
    (aioice.ice.Connection, "check_state", ("self", "pair", "state")),
    (aioice.ice.Connection, "check_complete", ("self", "pair")),
    (aioice.ice.Connection, "switch_role", ("self", "ice_controlling")),
    (aioice.ice.Connection, "_check_list_maybe_fail", ("self",)),
    (aioice.ice.Connection, "protocol_lost", ("self", "protocol")),
    (aioice.ice.CandidatePair, "__init__", ("self", "protocol", "remote_candidate")),
    (aioice.ice.StunProtocol, "__init__", ("self", "receiver")),
    (
        aioice.ice.StunProtocol,
        "request",
        ("self", "request", "addr", "integrity_key", "retransmissions"),
    ),
    (aioice.turn.TurnClientMixin, "channel_bind", ("self", "channel_number", "addr")),
    (aioice.turn.TurnClientMixin, "datagram_received", ("self", "data", "addr")),
    (aioice.turn.TurnClientMixin, "delete", ("self",)),
    (aioice.turn.TurnClientMixin, "refresh", ("self", "time_to_expiry")),
    (aioice.turn.TurnClientMixin, "request_with_retry", ("self", "request")),
    (aiortc.rtcdtlstransport, "certificate_digest", ("certificate", "algorithm")),
)
"""Owner, name and parameters of each private function that is called or replaced."""

_ATTRIBUTES: Final[tuple[tuple[type, tuple[str, ...]], ...]] = (
    (RTCSctpTransport, ("_advertised_rwnd", "_data_channel_queue", "_outbound_queue")),
    (RTCSctpTransport, ("_sent_queue", "_association_state", "_srtt", "_cwnd", "_flight_size")),
    (RTCDtlsTransport, ("_task", "_ssl")),
    (RTCIceTransport, ("_connection",)),
    (aioice.ice.Connection, ("_closed", "_nominated", "_protocols", "_queue")),
    (aioice.ice.Connection, ("_check_list", "_check_list_done", "_closing", "_nominating")),
    (aioice.ice.Connection, ("_local_candidates", "_local_candidates_start")),
    (aioice.ice.Connection, ("_local_candidates_end", "_remote_candidates", "_transport_policy")),
    (aioice.ice.CandidatePair, ("task", "nominated", "remote_nominated", "state")),
    (aioice.ice.StunProtocol, ("receiver", "transactions")),
    (aioice.turn.TurnClientMixin, ("channel_to_peer", "peer_to_channel", "mapped_address")),
    (aioice.turn.TurnClientMixin, ("receiver", "refresh_task", "relayed_address")),
)


def check_supported() -> None:
    """Raises :class:`UnsupportedAiortcError` unless all private names are as expected."""
    # importlib.metadata would cost the supervisor a megabyte.
    for name, installed, release in (
        ("aiortc", aiortc.__version__, AIORTC_RELEASE),
        ("aioice", aioice.__version__, AIOICE_RELEASE),
    ):
        if not installed.startswith(release):
            raise UnsupportedAiortcError(
                f"{name} {installed} is installed; socks-tunnel relies on private names of "
                f"{name} {release}x"
            )
    for owner, name, parameters in _FUNCTIONS:
        function = getattr(owner, name, None)
        found = None if function is None else tuple(inspect.signature(function).parameters)
        if found != parameters:
            raise UnsupportedAiortcError(
                f"{owner.__name__}.{name} takes {found}; socks-tunnel knows it with {parameters}"
            )
    if "CONSENT_FAILURES" not in aioice.ice.Connection.query_consent.__code__.co_names:
        raise UnsupportedAiortcError("aioice counts failed consent checks in another way now")
    made = vars(aiortc.rtcicetransport).get("Connection")
    if not isinstance(made, type) or not issubclass(made, aioice.Connection):
        raise UnsupportedAiortcError("aiortc.rtcicetransport makes its connections in another way")
    for owner, names in _ATTRIBUTES:
        for name in names:
            # co_names contains the names that a constructor assigns, so no instance is needed.
            if name not in owner.__init__.__code__.co_names:  # type: ignore[misc] # of a known class
                raise UnsupportedAiortcError(f"{owner.__name__} has no attribute {name} any more")


# --- data channels ----------------------------------------------------------------------------


def watch_buffered(channel: RTCDataChannel, watch: Callable[[int], None]) -> None:
    """Calls `watch` with each change of the number of bytes that wait in `channel`.

    The number is positive when `send` accepts a message, and negative when the message leaves for
    the SCTP queue. One queue holds the messages of all channels of a connection, so they leave in
    the order of sending.
    """
    original = channel._addBufferedAmount  # noqa: SLF001

    def hook(amount: int) -> None:
        original(amount)
        watch(amount)

    channel._addBufferedAmount = hook  # type: ignore[method-assign]  # noqa: SLF001


def watch_packets(pc: RTCPeerConnection, watch: Callable[[], None]) -> None:
    """Calls `watch` for each SCTP packet of the peer that DTLS has authenticated, from now on."""
    sctp = pc.sctp
    if sctp is None:
        return
    original = sctp._handle_data  # noqa: SLF001

    def handle(data: bytes) -> Any:
        watch()
        return original(data)  # a coroutine, which DTLS awaits

    sctp._handle_data = handle  # type: ignore[method-assign]  # noqa: SLF001


class SctpFigures(NamedTuple):
    """Figures of aiortc's SCTP about its path, in seconds and bytes."""

    rtt: float | None
    cwnd: int
    outstanding: int


def sctp_figures(pc: RTCPeerConnection) -> SctpFigures | None:
    """Returns the present figures; None before there is SCTP."""
    sctp = pc.sctp
    if sctp is None:
        return None
    return SctpFigures(sctp._srtt, sctp._cwnd, sctp._flight_size)  # noqa: SLF001


# --- state of a connection --------------------------------------------------------------------


def has_unsent(pc: RTCPeerConnection) -> bool:
    """Returns whether something that was sent is not acknowledged by the peer's SCTP yet."""
    sctp = pc.sctp
    # The association of the fast path.
    if isinstance(unsent := getattr(sctp, "has_unsent", None), bool):
        return unsent
    return (
        sctp is not None
        and sctp.state == "connected"
        and bool(sctp._data_channel_queue or sctp._outbound_queue or sctp._sent_queue)  # noqa: SLF001
    )


def reassembly_bytes(pc: RTCPeerConnection) -> int:
    """Returns the number of bytes that the peer has sent beyond SCTP's receive window.

    aiortc offers 1 MiB but accepts any amount, so fragments of messages without an end would fill
    the memory.
    """
    sctp = pc.sctp
    return 0 if sctp is None else max(0, -sctp._advertised_rwnd)  # noqa: SLF001


def receive_task(pc: RTCPeerConnection) -> Any:
    """Returns the task that reads datagrams, or None. Its exception is why DTLS closed."""
    return None if pc.sctp is None else pc.sctp.transport._task  # noqa: SLF001


def dtls_failure(pc: RTCPeerConnection, fingerprints: list[tuple[str, str]]) -> str:
    """Returns why DTLS failed, as a sentence.

    `fingerprints` are the (hash, value) pairs of the SDP that the peer signed.
    """
    connection = None if pc.sctp is None else pc.sctp.transport._ssl  # noqa: SLF001
    try:
        certificate = (
            None if connection is None else connection.get_peer_certificate(as_cryptography=True)
        )
    except Exception as error:  # noqa: BLE001 - the parser may raise anything for bytes of a peer
        return f"the peer's DTLS certificate cannot be read ({type(error).__name__})"
    if certificate is None:
        return "the DTLS handshake failed"
    for algorithm, value in fingerprints:
        if (
            algorithm in aiortc.rtcdtlstransport.X509_DIGEST_ALGORITHMS
            and aiortc.rtcdtlstransport.certificate_digest(certificate, algorithm) != value.upper()
        ):
            return "the peer's DTLS certificate does not have the fingerprint that its SDP names"
    return "the DTLS handshake failed after the certificates were checked"


def path_is_closed(pc: RTCPeerConnection) -> bool:
    """Returns whether ICE has closed its sockets, as it does when consent has expired."""
    return pc.sctp is not None and pc.sctp.transport.transport._connection._closed  # noqa: SLF001


def ice_connection(pc: RTCPeerConnection) -> aioice.ice.Connection | None:
    """Returns the ICE connection under a peer connection; None before there is one."""
    return None if pc.sctp is None else pc.sctp.transport.transport._connection  # noqa: SLF001


def selected_pair(connection: aioice.ice.Connection) -> aioice.ice.CandidatePair | None:
    """Returns the candidate pair in use, or None while there is no path."""
    return next(iter(connection._nominated.values()), None)  # noqa: SLF001


def abort_sockets(pc: RTCPeerConnection) -> None:
    """Closes the sockets of a connection whose orderly close hangs."""
    if pc.sctp is not None:
        for protocol in list(pc.sctp.transport.transport._connection._protocols):  # noqa: SLF001
            protocol.transport.abort()


# --- errors of the libraries' own tasks -------------------------------------------------------


def is_closing_noise(error: BaseException) -> bool:
    """Returns whether tasks and timers of aiortc or aioice end with such an error at a close.

    These libraries start tasks that nobody awaits. When the connection is closed meanwhile, the
    tasks raise ConnectionError, InvalidStateError, an error of the SSL object that was shut down,
    or, under uvloop, RuntimeError for a closed UDP transport.
    """
    if isinstance(error, RuntimeError):
        if "closed" not in str(error):
            return False
    elif not isinstance(error, (ConnectionError, InvalidStateError, _SSLError)):
        return False
    return raised_in_library(error.__traceback__) and is_library_error(error)


def raised_in_library(trace: TracebackType | None) -> bool:
    """Returns whether the outermost frame, apart from the event loop's, is aiortc's or aioice's."""
    while trace is not None:
        module: str = trace.tb_frame.f_globals.get("__name__", "")
        if not module.startswith(("asyncio.", "uvloop")):
            return module.startswith(("aiortc.", "aioice."))
        trace = trace.tb_next
    return False


_CONDUITS: Final = ("socks_tunnel.peer.plain.fences", "socks_tunnel.peer.fast.")
"""Our modules between two layers of aiortc."""


def is_library_error(error: BaseException) -> bool:
    """Returns whether `error` was raised by aiortc or its libraries, and not by our code.

    The traceback may contain layers of ours that only pass packets to aiortc.
    """
    trace = error.__traceback__
    ours = False
    while trace is not None:
        module: str = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith(_CONDUITS):
            ours = True
        elif module.startswith("socks_tunnel"):
            return False
        elif module.startswith(("aiortc.", "aioice.")):
            ours = False
        trace = trace.tb_next
    return not ours


# --- what replaces parts of aioice ------------------------------------------------------------


def _datagram_received(self: Any, data: bytes, addr: tuple[Any, ...]) -> None:
    """Sorts a datagram by its first byte (RFC 7983) before aioice sees it.

    aioice passes on what it cannot parse as STUN, and aiortc then reads its first byte. So an empty
    datagram from anyone would end the link with an IndexError. STUN attributes of an odd length
    raise struct.error out of the protocol, and uvloop then closes the socket. This filter
    recognizes data without trying to parse it as STUN, which is also cheaper.
    """
    if not data:
        return
    first = data[0]
    if 19 < first < 64:  # DTLS
        receiver = self.receiver
        if receiver._queue.qsize() < DATAGRAM_QUEUE_MAX:  # noqa: SLF001
            receiver.data_received(data, 1)
    elif first < 4:  # STUN
        # The peer may send on a socket that it still checks.
        self.heard_at = time.monotonic()
        try:
            _aioice_datagram_received(self, data, addr)
        except Exception as error:  # noqa: BLE001 - aioice may raise anything for bytes from anyone
            _log.debug("a STUN datagram from %s cannot be read: %r", addr, error)


check_supported()
_aioice_datagram_received = aioice.ice.StunProtocol.datagram_received


REQUESTED_ADDRESS_FAMILY: Final = (
    0x0017,
    "REQUESTED-ADDRESS-FAMILY",
    aioice.stun.pack_unsigned,
    aioice.stun.unpack_unsigned,
)
"""An attribute of TURN that aioice does not know (RFC 8656 section 18.6)."""


def install(connection: type[aioice.ice.Connection]) -> None:
    """Installs our replacements. `connection` is the class of ICE connections for aiortc."""
    aioice.stun.ATTRIBUTES_BY_TYPE[REQUESTED_ADDRESS_FAMILY[0]] = REQUESTED_ADDRESS_FAMILY
    aioice.stun.ATTRIBUTES_BY_NAME[REQUESTED_ADDRESS_FAMILY[1]] = REQUESTED_ADDRESS_FAMILY
    aioice.ice.CONSENT_FAILURES = CONSENT_FAILURES
    aioice.ice.StunProtocol.datagram_received = _datagram_received  # type: ignore[method-assign,assignment] # its type has a "str" that never occurs
    vars(aiortc.rtcicetransport)["Connection"] = connection
