"""The association's life, where it differs from aiortc's: INIT, restart, extensions, resets.

aiortc's handlers stay in charge of all rare chunks. They keep the state of the data path in fields
of their own, which are not used here but for what other handlers read: `_local_tsn` and
`_last_received_tsn` are brought up to date before those run.
"""

import hmac
import os
from collections.abc import Coroutine
from typing import Any

from aiortc import RTCDtlsTransport, RTCSctpTransport
from aiortc.rtcsctptransport import (
    AbortChunk,
    Chunk,
    CookieEchoChunk,
    InitAckChunk,
    InitChunk,
    ReconfigChunk,
    StreamAddOutgoingParam,
    StreamResetOutgoingParam,
    StreamResetResponseParam,
)

from socks_tunnel.peer.fast.datapath import DataPath
from socks_tunnel.peer.fast.exchange import Exchange
from socks_tunnel.peer.fast.wire import (
    ADDRESSING,
    I_DATA,
    I_FORWARD_TSN,
    SACK_BATCH,
    SACK_BATCH_VALUE,
    STAMP_VERSION,
    TSN_MASK,
    ZERO_CHECKSUM_ACCEPTABLE,
    ZERO_CHECKSUM_OVER_DTLS,
)

PROTOCOL_VIOLATION = 13
"""Error cause of an ABORT (RFC 9260 section 3.3.10.13)."""

RECONFIG_PARAMETERS_MAX = 2
"""Parameters of a RE-CONFIG chunk (RFC 6525 section 3.1); each of them is answered."""

RTO_RARE_MIN = 1.0
"""Seconds that the answer to a rare chunk is waited for at least."""

T1_FIRST = 0.3
T1_LONGEST = 1.0
"""Seconds until INIT or COOKIE ECHO is sent again: for the first time, and at most. RFC 9260 has
1 s at first (section 16), and aiortc 3 s each time; flows wait for this. Both chunks are small, and
a repeated one changes nothing (section 5.2)."""


class FastAssociation(RTCSctpTransport):
    """The control plane of an association whose data is moved by `path`."""

    path: DataPath
    exchange: Exchange

    def __init__(self, transport: RTCDtlsTransport, port: int) -> None:
        super().__init__(transport, port)
        self._peer_identity: tuple[int, int] | None = None
        self._peer_batches = False
        self._peer_stamps = False
        self._peer_takes_zero = False
        self._restart: InitChunk | None = None

    def _ended(self, reason: str) -> None:
        """Learns that the association has ended, for another reason than a call of `stop`."""
        raise NotImplementedError

    # --- INIT -------------------------------------------------------------------------------------

    def _set_extensions(self, params: list[tuple[int, bytes]]) -> None:
        """Announces I-DATA and I-FORWARD-TSN (RFC 8260 section 2.2.1), and batch SACKs.

        Above a transport that lets no changed packet through, also that no checksums are needed.
        """
        super()._set_extensions(params)
        kind, extensions = params[-1]
        params[-1] = (kind, extensions + bytes((I_DATA, I_FORWARD_TSN)))
        params.append((SACK_BATCH, SACK_BATCH_VALUE))
        if self._is_authentic:
            params.append((ZERO_CHECKSUM_ACCEPTABLE, ZERO_CHECKSUM_OVER_DTLS))
            self.path.takes_zero_checksums = True

    @property
    def _is_authentic(self) -> bool:
        return getattr(self.transport, "authentic", False)

    def _get_extensions(self, params: list[tuple[int, bytes]]) -> None:
        self._remote_extensions = []
        self._remote_partial_reliability = False
        super()._get_extensions(params)
        versions = [
            int.from_bytes(value[:4], "big") for kind, value in params if kind == SACK_BATCH
        ]
        self._peer_batches = bool(versions)
        self._peer_stamps = max(versions, default=0) >= STAMP_VERSION
        self._peer_takes_zero = (ZERO_CHECKSUM_ACCEPTABLE, ZERO_CHECKSUM_OVER_DTLS) in params

    async def _receive_chunk(self, chunk: Chunk) -> None:
        if isinstance(chunk, InitChunk):
            await self._receive_init(chunk)
            return
        if isinstance(chunk, ReconfigChunk) and len(chunk.params) > RECONFIG_PARAMETERS_MAX:
            raise ValueError(f"RE-CONFIG with {len(chunk.params)} parameters")
        if isinstance(chunk, CookieEchoChunk) and self._restart is not None:
            cookie = chunk.body
            if hmac.new(self._hmac_key, cookie[:4], "sha1").digest() == cookie[4:]:
                self._end_for_restart(self._restart)
                return
        state = self._association_state
        await super()._receive_chunk(chunk)
        if isinstance(chunk, InitAckChunk) and state == self.State.COOKIE_WAIT:
            self._meet_peer(chunk)
        if self._association_state == self.State.CLOSED != state:
            self._ended("the peer ended the association")

    def _t1_start(self, chunk: Chunk) -> None:
        self._rto = T1_FIRST
        super()._t1_start(chunk)

    def _t1_expired(self) -> None:
        self._rto = min(2 * self._rto, T1_LONGEST)
        super()._t1_expired()

    async def _receive_init(self, chunk: InitChunk) -> None:
        """Answers an INIT; the association changes only where RFC 9260 section 5.2 has it so."""
        identity = (chunk.initiate_tag, chunk.initial_tsn)
        known = self._peer_identity
        if known is None or (
            identity != known and self._association_state != self.State.ESTABLISHED
        ):
            await super()._receive_chunk(chunk)
            self._meet_peer(chunk)
            return
        # Sections 5.2.1 and 5.2.2: a repeated INIT, or that of a peer that has restarted, is
        # answered and changes nothing before its cookie comes back.
        names = (
            "_remote_verification_tag",
            "_last_received_tsn",
            "_reconfig_response_seq",
            "_remote_extensions",
            "_remote_partial_reliability",
            "_peer_batches",
            "_peer_stamps",
            "_peer_takes_zero",
            "_inbound_streams_count",
            "_outbound_streams_count",
        )
        fields = vars(self)
        kept = {name: fields[name] for name in names}
        pending = self._restart
        if identity != known and (
            pending is None or (pending.initiate_tag, pending.initial_tsn) != identity
        ):
            self._restart = chunk
            self._hmac_key = os.urandom(16)  # cookies of the first association count no more
        await super()._receive_chunk(chunk)
        fields.update(kept)

    def _meet_peer(self, chunk: InitChunk | InitAckChunk) -> None:
        """Starts the data path with what the peer said in its INIT or INIT ACK."""
        identity = (chunk.initiate_tag, chunk.initial_tsn)
        path = self.path
        if identity != self._peer_identity:
            self._peer_identity = identity
            path.receiver.start(chunk.initial_tsn)
        path.sender.peer_window = chunk.advertised_rwnd
        local, remote = self._local_port, self._remote_port
        path.set_addressing(
            ADDRESSING.pack(remote, local, self._local_verification_tag),
            ADDRESSING.pack(local, remote, chunk.initiate_tag),
        )
        path.set_extensions(
            interleaved=I_DATA in self._remote_extensions,
            partial_reliability=self._remote_partial_reliability,
            batch_sacks=self._peer_batches,
            stamps=self._peer_stamps,
            zero_checksums=self._peer_takes_zero and self._is_authentic,
        )

    def _end_for_restart(self, chunk: InitChunk) -> None:
        """Ends the association, because the peer has restarted it (RFC 9260 section 5.2.4.1 A).

        The peer has forgotten its streams and what it had received. A data channel promises that
        nothing is lost in silence, so it cannot go on; whoever uses it starts anew.
        """
        self._restart = None
        self._remote_verification_tag = chunk.initiate_tag
        self.fail("the peer's SCTP has restarted, and what was under way is lost")

    def fail(self, reason: str) -> None:
        """Ends the association because of the peer; tells it and the owner why."""
        chunk = AbortChunk()
        chunk.params.append((PROTOCOL_VIOLATION, reason.encode()))
        run_now(self._send_chunk(chunk))
        self._ended(reason)  # before the channels say that they are closed, which is no reason
        self._set_state(self.State.CLOSED)

    # --- resets of streams (RFC 6525) -------------------------------------------------------------

    async def _transmit_reconfig(self) -> None:
        """Asks for the reset of streams, once all that was queued for them is sent."""
        for stream_id in self._reconfig_queue:
            if self.exchange.waits(stream_id):
                return
        recovery = self.path.sender.recovery
        self._local_tsn = recovery.next_tsn & TSN_MASK
        self._rto = max(recovery.trip.rto, RTO_RARE_MIN)
        await super()._transmit_reconfig()

    async def _receive_reconfig_param(
        self,
        param: StreamAddOutgoingParam | StreamResetOutgoingParam | StreamResetResponseParam,
    ) -> None:
        request = self._reconfig_request
        await super()._receive_reconfig_param(param)
        if request is not None and self._reconfig_request is not request:
            for stream_id in request.streams:
                self.exchange.forget(stream_id)

    async def _reset_deferred_streams(self) -> None:
        request = self._reconfig_deferred
        receiver = self.path.receiver
        self._last_received_tsn = receiver.cumulative & TSN_MASK
        await super()._reset_deferred_streams()
        if request is not None and self._reconfig_deferred is None:
            for stream_id in request.streams:
                receiver.reassembly.reset(stream_id)


def run_now(coroutine: Coroutine[Any, Any, Any]) -> None:
    """Runs a coroutine that never waits to its end."""
    try:
        coroutine.send(None)
    except StopIteration:
        return
    coroutine.close()
    raise RuntimeError(f"{coroutine!r} waits for something")
