"""aioice's connection with our gathering, check list and nomination.

aioice nominates aggressively: each check is a nomination, and the last answered one wins. That may
be a relayed path although a direct one would have worked half a second later, and each side may
select another one. Here the side that made the offer first finds out which pairs work, and then
nominates one (RFC 8445 section 8.1.1).

A direct pair is nominated at once. A relayed one waits until direct pairs have had
:data:`DIRECT_PATIENCE`. Both sides repeat their direct checks sooner than STUN does
(:mod:`~.repeats`).

States of a pair (RFC 8445 section 6.1.2.6); no pair is ever Frozen, since there is one component
and the list is in the order in which it should be checked::

    Waiting --check--> In-Progress --answer--> Succeeded --nominated--> selected
                            |                      |
                            +--no answer--> Failed <--- nomination unanswered
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final, cast

import aioice
from aioice import stun
from aioice.ice import CandidatePair, StunProtocol, TransportPolicy

from socks_tunnel.ops.tasks import spawn
from socks_tunnel.peer.ice.consent import next_check
from socks_tunnel.peer.ice.datagram_relay import is_channel_address
from socks_tunnel.peer.ice.gathering import Gathering
from socks_tunnel.peer.ice.pairs import (
    LOCAL_PREFERENCE_MAX,
    PAIRS_LEARNED_MAX,
    PAIRS_MAX,
    candidate_priority,
    pair_priority,
    prune,
)
from socks_tunnel.peer.ice.patience import TICK, Patience
from socks_tunnel.peer.ice.protocol import PathProtocol
from socks_tunnel.peer.ice.repeats import Repeats
from socks_tunnel.peer.ice.settings import current_settings
from socks_tunnel.protocol.addresses import parse_ip

_log = logging.getLogger(__name__)

DIRECT_PATIENCE: Final = 1.2
"""Seconds for direct paths once a relayed one works. Time in which this process did not run does
not count (:class:`~.patience.Patience`)."""

NOMINATION_PATIENCE: Final = 4.0
"""Seconds that the peer has to answer a nomination, if another pair works too. The interface of a
pair may vanish after its check, as that of a VPN may. STUN alone would repeat the nomination for a
minute (RFC 8489 section 6.2.1), longer than a link may take."""

RELEASE_AFTER: Final = 15.0
"""Seconds after which a socket that is not part of the path is closed, if no check arrived there
meanwhile. RFC 8445 section 8.3 says 3 s, which is too early for a peer like aioice that may have
selected another pair; its consent checks (RFC 7675) come every 4 to 6 s."""

LATE: Final = 1.0
"""If a timer is late by more seconds than this, this process was stopped or starved. Then it has to
check again before it calls a peer silent."""

ROLE_CONFLICTS_MAX: Final = 4
"""Role conflicts in a row after which a check fails."""


class IceConnection(aioice.Connection):
    """One ICE agent with one component, made by aiortc for each peer connection.

    A connection that gathers outside of :func:`~.settings.candidate_addresses` is not ours, and
    behaves like aioice's.

    This class has many methods because it overrides each step of aioice that it decides
    differently.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.problems: list[str] = []
        """Problems in gathering, as clauses."""
        self.mapped: dict[CandidatePair, tuple[str, int]] = {}
        """Our own address as the peer saw it, for each pair that works."""
        self._drops_before: Counter[str] = Counter()
        self.seen_at: float | None = None
        """When the peer has last answered a check of consent, by :func:`time.monotonic`."""
        self.lost: str | None = None
        """Why the selected path was lost, if that is known."""
        self._ours = False
        self._gathering: Gathering | None = None
        self._formed = False
        self._direct_only = False
        self._patience: asyncio.Task[None] | None = None
        self._patience_over = False
        self._repeats: Repeats[CandidatePair] = Repeats()
        self._repeating: asyncio.Task[None] | None = None
        self._release_task: asyncio.Task[None] | None = None

    # --- candidates ---------------------------------------------------------------------------

    async def gather_candidates(self) -> None:
        """Gathers what the settings allow; see :class:`~.gathering.Gathering`."""
        settings = current_settings()
        if settings is None or self._local_candidates_start:
            await super().gather_candidates()
            return
        self._ours = self._local_candidates_start = True
        if settings.policy == "relay":
            self._transport_policy = TransportPolicy.RELAY
        self._direct_only = settings.policy == "direct"
        remote = [parse_ip(candidate.host) for candidate in self._remote_candidates]
        self._gathering = Gathering(
            settings,
            lambda: PathProtocol(self, self._consented),
            self._protocols,
            remote=[address for address in remote if address is not None],
        )
        if self._closing:
            self._gathering.close()
        self._local_candidates = await self._gathering.run()
        self.problems = self._gathering.problems
        self._local_candidates_end = True

    def _pair_remote_candidate(self, remote_candidate: aioice.Candidate) -> None:
        """Does nothing: :meth:`_unfreeze_initial` pairs all candidates at once."""
        if not self._ours or self._formed:
            super()._pair_remote_candidate(remote_candidate)

    def _unfreeze_initial(self) -> None:
        """Forms the check list. aioice calls this when the candidates of both sides are known."""
        if not self._ours:
            super()._unfreeze_initial()
            return
        self._formed = True
        # Computed once for each candidate, and not for each of some thousand pairs.
        remotes = [(_kind(remote), remote) for remote in self._remote_candidates]
        pairs = [
            CandidatePair(protocol, remote)
            for own, protocol in [(_kind(p.local_candidate), p) for p in self._protocols]
            for kind, remote in remotes
            if own == kind and not (self._direct_only and remote.type == "relay")
        ]
        self._check_list = prune(
            pairs,
            self._priority,
            lambda pair: (pair.local_candidate.type, pair.remote_candidate.type),
        )
        for pair in self._check_list:
            pair.state = CandidatePair.State.WAITING

    def _priority(self, pair: CandidatePair) -> int:
        local, remote = pair.local_candidate.priority, pair.remote_candidate.priority
        return (
            pair_priority(local, remote) if self.ice_controlling else pair_priority(remote, local)
        )

    # --- checks -------------------------------------------------------------------------------

    def build_request(self, pair: CandidatePair, nominate: bool) -> stun.Message:
        """Returns a check, with the priority that a peer-reflexive candidate of ours would have.

        RFC 8445 section 7.1.1: the same local preference as the candidate that it is sent from, so
        that the peer orders what it learns of as we do.
        """
        request = super().build_request(pair, nominate)
        if self._ours:
            preference = (pair.local_candidate.priority >> 8) & LOCAL_PREFERENCE_MAX
            request.attributes["PRIORITY"] = candidate_priority("prflx", preference)
        return request

    def check_incoming(
        self, message: stun.Message, addr: tuple[str, int], protocol: StunProtocol
    ) -> None:
        """Takes a check of the peer. Such checks cannot make the list grow without bound."""
        if len(self._check_list) < PAIRS_MAX + PAIRS_LEARNED_MAX or any(
            pair.protocol is protocol and pair.remote_addr == addr for pair in self._check_list
        ):
            super().check_incoming(message, addr, protocol)
            pair = self._nominated.get(1)
            if (
                isinstance(protocol, PathProtocol)
                and pair is not None
                and pair.protocol is protocol
                and pair.remote_addr == addr
            ):
                protocol.accepted(message, addr)

    def switch_role(self, ice_controlling: bool) -> None:
        """Takes the other role, in which the peer's checks have another meaning."""
        super().switch_role(ice_controlling)
        for protocol in self._protocols:
            if isinstance(protocol, PathProtocol):
                protocol.forget()

    async def check_start(self, pair: CandidatePair) -> None:
        """Checks whether a pair works."""
        if not self._ours:
            await super().check_start(pair)
            return
        self.check_state(pair, CandidatePair.State.IN_PROGRESS)
        worked = False
        for _ in range(ROLE_CONFLICTS_MAX):
            request = self.build_request(pair, nominate=False)
            try:
                response, addr = await self._request(pair, request)
            except stun.TransactionError as error:
                # RFC 8445 section 7.2.5.1: try again in the other role.
                if error.response is not None and error.response.error_code == 487:
                    self.switch_role("ICE-CONTROLLED" in request.attributes)
                    continue
                break
            except (OSError, RuntimeError) as error:
                _log.debug("%r: no check can be sent on the pair %r: %r", self, pair, error)
                break
            # RFC 8445 section 7.2.5.2.1: the answer must come from where the check went.
            worked = addr == pair.remote_addr
            if worked and "XOR-MAPPED-ADDRESS" in response.attributes:
                self.mapped[pair] = response.attributes["XOR-MAPPED-ADDRESS"]
            break
        if worked and pair.remote_nominated:
            pair.nominated = True
        self.check_state(
            pair, CandidatePair.State.SUCCEEDED if worked else CandidatePair.State.FAILED
        )
        self.check_complete(pair)
        if worked and is_relayed(pair):
            self._wait_for_direct()
        self._nominate_best()

    async def _request(
        self, pair: CandidatePair, request: stun.Message
    ) -> tuple[stun.Message, tuple[str, int]]:
        assert self.remote_password is not None, "checks start once the peer's password is known"
        if not is_relayed(pair):
            self._repeats.asked(pair, request, asyncio.get_running_loop().time())
            if self._repeating is None and not self._closing:
                self._repeating = spawn(f"checks of {self!r}", self._repeat_checks())
        try:
            answer: tuple[stun.Message, tuple[str, int]] = await pair.protocol.request(
                request, pair.remote_addr, integrity_key=self.remote_password.encode("utf8")
            )
        finally:
            self._repeats.answered(pair)
        return answer

    async def _repeat_checks(self) -> None:
        """Repeats unanswered direct checks until a path is found."""
        loop = asyncio.get_running_loop()
        while not self._check_list_done:
            await asyncio.sleep(TICK)
            waiting = self._patience is not None and not self._patience_over
            for pair, request in self._repeats.take(self._check_list, loop.time(), hurry=waiting):
                try:
                    pair.protocol.send_stun(request, pair.remote_addr)
                except (OSError, RuntimeError) as error:
                    _log.debug("%r: no check can be sent on the pair %r: %r", self, pair, error)

    def _check_list_maybe_fail(self) -> None:
        """Keeps the list from failing while a working pair waits for its nomination."""
        if not self._ours or not self._succeeded():
            super()._check_list_maybe_fail()

    def _succeeded(self) -> list[CandidatePair]:
        return [
            pair
            for pair in self._check_list
            if pair.state == CandidatePair.State.SUCCEEDED
            and not (self._direct_only and is_relayed(pair))
        ]

    def _better_unanswered(self, pair: CandidatePair) -> bool:
        """Returns whether a less relayed pair than this one may still be found to work."""
        waited_for = (CandidatePair.State.WAITING, CandidatePair.State.IN_PROGRESS)
        rank = relay_rank(pair)
        return any(p.state in waited_for and relay_rank(p) < rank for p in self._check_list)

    # --- nomination ---------------------------------------------------------------------------

    def _nominate_best(self) -> None:
        """Nominates the best working pair, unless a direct one may still be found."""
        if not self.ice_controlling or self._nominating or self._check_list_done or self._closing:
            return
        succeeded = self._succeeded()
        if not succeeded:
            return
        best = max(succeeded, key=self._priority)
        if is_relayed(best) and not self._patience_over and self._better_unanswered(best):
            return
        self._nominating.add(best.component)
        best.task = spawn(f"nominate {best}", self._nominate(best))

    def _wait_for_direct(self) -> None:
        """Begins the wait for direct paths, on either side, if it has not begun yet."""
        if self._patience is None and not self._closing:
            self._patience = spawn(f"direct paths of {self!r}", self._give_direct_their_time())

    async def _give_direct_their_time(self) -> None:
        """Waits until a direct pair works, or the time for direct pairs is over."""
        loop = asyncio.get_running_loop()
        patience = Patience(loop.time())
        while patience.spent < DIRECT_PATIENCE and not self._check_list_done:
            await asyncio.sleep(TICK)
            patience.look(loop.time())
        self._patience_over = True
        self._nominate_best()

    async def _nominate(self, pair: CandidatePair) -> None:
        request = self.build_request(pair, nominate=True)
        # Not spawn: a missing answer is no bug, and is logged here.
        asking = asyncio.get_running_loop().create_task(self._request(pair, request))
        try:
            await self._wait_for_nomination(pair, asking)
        except (stun.TransactionError, OSError, RuntimeError) as error:
            _log.debug("%r: the pair %r cannot be nominated: %r", self, pair, error)
            self.check_state(pair, CandidatePair.State.FAILED)
        else:
            pair.nominated = True
        finally:
            asking.cancel()
        self._nominating.discard(pair.component)
        self.check_complete(pair)
        self._nominate_best()

    async def _wait_for_nomination(
        self, pair: CandidatePair, asking: "asyncio.Task[tuple[stun.Message, tuple[str, int]]]"
    ) -> None:
        """Waits for the answer to a nomination.

        Raises :class:`TimeoutError` if none comes in time and another pair works too. Otherwise
        raises whatever the transaction raises.
        """
        loop = asyncio.get_running_loop()
        patience = Patience(loop.time())
        while not asking.done():
            if patience.look(loop.time()) >= NOMINATION_PATIENCE and any(
                other is not pair for other in self._succeeded()
            ):
                raise TimeoutError(f"no answer within {NOMINATION_PATIENCE:g} s")
            await asyncio.wait([asking], timeout=TICK)
        asking.result()

    # --- afterwards ---------------------------------------------------------------------------

    async def connect(self) -> None:
        """Finds a path. Raises :class:`ConnectionError` if there is none."""
        await super().connect()
        if self._ours:
            self._release_task = spawn(f"release sockets of {self!r}", self._release_unused())

    def _consented(self) -> None:
        self.seen_at = time.monotonic()

    async def query_consent(self) -> None:
        """Asks the peer for its consent repeatedly, until the task is cancelled (RFC 7675)."""
        if not self._ours:
            await super().query_consent()
            return
        while True:
            await asyncio.sleep(next_check())
            for pair in self._nominated.values():
                try:
                    cast("PathProtocol", pair.protocol).ask_consent(pair)
                except (OSError, RuntimeError) as error:
                    _log.debug("%r: no consent can be asked for on %r: %r", self, pair, error)

    async def _release_unused(self) -> None:
        """Closes the sockets and ends the allocations that are not part of the path."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + RELEASE_AFTER
            await asyncio.sleep(RELEASE_AFTER)
            if not self._nominated:  # closed
                return
            # Datagrams that arrived meanwhile still wait in the sockets.
            if loop.time() > due + LATE:
                continue
            used = {pair.protocol for pair in self._nominated.values()}
            silent_since = time.monotonic() - RELEASE_AFTER
            for protocol in [p for p in self._protocols if p not in used]:
                if getattr(protocol, "heard_at", 0.0) < silent_since:
                    self._protocols.remove(protocol)
                    self._drops_before.update(_drops(protocol))
                    await protocol.close()
            if len(self._protocols) <= len(used):
                return

    def drops(self) -> Mapping[str, int]:
        """Returns the number of datagrams that its sockets and allocations dropped, by reason."""
        total = self._drops_before.copy()
        for protocol in self._protocols:
            total.update(_drops(protocol))
        return total

    def protocol_lost(self, protocol: StunProtocol) -> None:
        """Notes that a socket or an allocation has ended."""
        used = any(pair.protocol is protocol for pair in self._nominated.values())
        if used and not self._closing and protocol.local_candidate.type == "relay":
            self.lost = "the TURN server has ended the connection or the allocation"
        super().protocol_lost(protocol)

    async def close(self) -> None:
        """Closes all sockets at once, so that their ports become free."""
        if self._patience is not None:
            self._patience.cancel()
        if self._repeating is not None:
            self._repeating.cancel()
        if self._gathering is not None:
            self._gathering.close()
        if self._release_task is not None:
            self._release_task.cancel()
        await super().close()


def _drops(protocol: StunProtocol) -> Mapping[str, int]:
    """Returns the drops of a socket or an allocation. Those of asyncio drop only in the kernel."""
    drops: Mapping[str, int] = getattr(protocol.transport, "drops", {})
    strangers = getattr(protocol, "strangers", 0)
    return {**drops, "foreign-source": strangers} if strangers else drops


def is_relayed(pair: CandidatePair) -> bool:
    """Returns whether a TURN server, or a relay of signalling, is part of the path."""
    return "relay" in {pair.local_candidate.type, pair.remote_candidate.type}


def relay_rank(pair: CandidatePair) -> int:
    """Returns 0 for a direct pair, 1 for one with a TURN server, 2 for a relay of signalling."""
    if is_channel_address(parse_ip(pair.local_candidate.host)):
        return 2
    return int(is_relayed(pair))


def _kind(candidate: aioice.Candidate) -> tuple[int, str, int]:
    """Returns the kind of a candidate, which both of a pair must share (RFC 8445 section 6.1.2.2).

    A channel of a relay can be paired only with the same channel.
    """
    address = parse_ip(candidate.host)
    if address is None:
        family = 0
    else:
        family = int(address) if is_channel_address(address) else address.version
    return candidate.component, candidate.transport.lower(), family
