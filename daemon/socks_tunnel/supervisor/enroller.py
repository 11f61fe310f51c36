"""Hosts that join an endpoint: their requests, and the commands of its administrator.

A host that has joined is a peer, like those of the configuration, with the policy that its tag
names. Requests that come together are applied together. So for a thousand hosts, the workers get a
few new configurations and not a thousand.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeAlias

from socks_tunnel.config.settings import LIFETIME_MAX, Config
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.signaling.carrier import remote_address
from socks_tunnel.signaling.enrolment_file import EnrolmentFile
from socks_tunnel.signaling.enrolments import Enrolments
from socks_tunnel.signaling.identity import PrivateIdentity, public_key_text
from socks_tunnel.signaling.joining import (
    Joined,
    JoinRejected,
    JoinRequest,
    JwtRequest,
    NotJoined,
    RenewRequest,
    Request,
    answer_to,
    open_request,
)
from socks_tunnel.supervisor.control import ControlError
from socks_tunnel.supervisor.enrolment_rows import keys_in, peer_of, rows_of, why_refused
from socks_tunnel.supervisor.group import Ask, ListCopy, ListOwner, part_of
from socks_tunnel.supervisor.jwt_joins import JwtJoins, Refusal

_log = logging.getLogger(__name__)

FILE: Final = "enrolments"
COPY: Final = "enrolments-of-group"
"""Names of the files in the state directory. The second one is the copy of a group's list."""

GATHER: Final = 0.1
"""Seconds for which changes are gathered before they are applied together."""

REQUESTS_LOGGED: Final = 20
"""Refused requests that are logged within :data:`REQUESTS_PERIOD`. Others are only counted."""

REQUESTS_PERIOD: Final = 10.0
"""Seconds."""

OPERATIONS: Final = frozenset({"forget", "invite", "peers", "revoke", "withdraw"})
"""Requests on the control socket that are answered here."""


class Enroller:
    """The members of one endpoint. `apply` puts a changed set of peers into force.

    Raises :class:`OSError` if the file of enrolments cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        identity: PrivateIdentity,
        config: Config,
        apply: Callable[[], Awaitable[None]],
        metrics: Metrics,
    ) -> None:
        self._identity = identity
        self._file = EnrolmentFile(directory / FILE, identity)
        self._apply = apply
        self._applying: asyncio.Task[None] | None = None
        self._refused = 0
        self._refused_since = 0.0
        self._told: set[str] = set()
        """Members that the configuration refuses, and that were logged."""
        self._jwt = JwtJoins(identity)
        self._results = metrics.joins_total
        self._expires = metrics.membership_expires_seconds
        self._stale = False
        self._group = part_of(
            config, identity, self._file.enrolments, directory / COPY, self._changed, metrics
        )
        if isinstance(self._group, ListOwner):
            # Without this, an epoch lost in a power failure would be used again for other changes.
            self._file.sync()
        self._enrolments.expire(time.time())
        self._show()
        self.use(config)

    @property
    def _is_copy(self) -> bool:
        """Whether another endpoint owns the list of members."""
        return isinstance(self._group, ListCopy)

    @property
    def _enrolments(self) -> Enrolments:
        """The members in force, and the invitations."""
        return (
            self._group.enrolments if isinstance(self._group, ListCopy) else self._file.enrolments
        )

    def start(self, ask: Ask) -> None:
        """Shares the list with the other endpoints of the group from now on."""
        if self._group is not None:
            self._group.start(ask)

    async def stop(self) -> None:
        """Stops sharing the list."""
        if self._group is not None:
            await self._group.stop()

    def use(self, config: Config) -> None:
        """Takes a configuration (without the members) for decisions from now on."""
        self._config = config
        self._jwt.apply(config)
        self._listed = keys_in(config)

    def extend(self, config: Config) -> Config:
        """Returns a configuration as it was read, with the members as further peers.

        It does not put anything into force, because the configuration may still be refused. It may
        be called in a thread while hosts join.
        """
        names, listed = {peer.name for peer in config.peers}, keys_in(config)
        now = time.time()
        peers, refused = [], set()
        barred = self._file.enrolments.revoked.keys() if self._is_copy else frozenset()
        members = list(self._enrolments.members.values())
        if isinstance(self._group, ListCopy) and self._group.is_stale(now):
            members = []
        for member in members:
            if 0 < member.until <= now or not barred.isdisjoint(member.all_keys()):
                continue
            why = why_refused(member, names, config.policies, listed, now)
            if why is None:
                peers.append(peer_of(member, now))
                continue
            refused.add(member.name)
            if member.name not in self._told:
                _log.warning(
                    "the host %s has joined, but its links are refused: %s", member.name, why
                )
        self._told = refused
        return replace(config, peers=(*config.peers, *peers))

    def extended(self) -> Config:
        """Returns the configuration in force with the present members."""
        return self.extend(self._config)

    def revoked_keys(self) -> list[bytes]:
        """Returns the keys whose enrolment by this endpoint is void: replaced and revoked ones.

        Revoked keys come last, because a service keeps the last keys if there are too many.
        """
        enrolments = self._file.enrolments
        return [*enrolments.replaced(), *enrolments.revoked]

    def tick(self) -> None:
        """Removes members whose time is over. Has to be called about once a second."""
        group = self._group
        if isinstance(group, ListCopy) and (stale := group.is_stale(time.time())) != self._stale:
            self._stale = stale
            if stale:
                _log.warning(
                    "hosts that have joined are refused: the copy of the list of %s is too old"
                    " (join.group.max_age)",
                    group.owner_name,
                )
            self._changed()
        if self._enrolments.expire(time.time()):
            _log.info("the membership of a host, or the time of its old key, has expired")
            self._changed()

    def seen(self, name: str) -> None:
        """Notes the present time for a peer, of which a link has come up or ended."""
        try:
            self._enrolments.seen(name, time.time())
        except OSError as error:
            _log.warning("the time at which %s was seen cannot be saved: %s", name, error)

    def _changed(self) -> "asyncio.Task[None]":
        """Applies changes soon; returns the task that ends when they are in force."""
        self._show()
        if isinstance(self._group, ListOwner):
            self._group.changed()
        if self._applying is None:
            self._applying = spawn("apply enrolments", self._apply_soon())
        return self._applying

    def _show(self) -> None:
        """Exports the time at which the first membership ends; nothing if none ends."""
        ends = [member.until for member in self._enrolments.members.values() if member.until]
        if ends:
            self._expires.labels("joined").set(min(ends))
        else:
            self._expires.series.clear()

    async def _apply_soon(self) -> None:
        await asyncio.sleep(GATHER)
        self._applying = None  # later changes need another call
        await self._apply()

    # --- requests to join -----------------------------------------------------------------------

    async def handle(self, data: bytes) -> bytes | None:
        """Returns the answer to a request; None if its sender has proved nothing.

        This is a :data:`~socks_tunnel.signaling.carrier.JoinHandler`.
        """
        now = time.time()
        if self._group is not None:
            try:
                shared = self._group.opened(data)
                if shared is not None:
                    return self._group.handle(shared)
            except JoinRejected as rejection:
                self._refuse("rejected", str(rejection))
                return None
            if isinstance(self._group, ListCopy):
                self._refuse("rejected", self._group.elsewhere)
                return None
        try:
            request = open_request(data, self._identity.public, now)
            if isinstance(request, JwtRequest):
                decided: _Decided = await self._decide_jwt(request, now)
            else:
                decided = self._decide(request, now)
        except JoinRejected as rejection:
            self._refuse("rejected", str(rejection))
            return None
        except OSError as error:
            decided = _not_written(error)
        if decided is None:
            self._refuse("unproved", "there is no such invitation, or the proof is wrong")
            return None
        if isinstance(decided, Joined):
            decided = await self._hold(decided)
        if isinstance(decided, Refusal):
            self._refuse(decided.code, decided.sentence)
            decided = NotJoined(decided.sentence)
        elif isinstance(decided, NotJoined):
            self._refuse("refused", decided.reason)
        else:
            what = "renewed" if isinstance(request, RenewRequest) else "joined"
            self._results.labels(what).inc()
        return answer_to(self._identity, request, decided)

    async def _decide_jwt(self, request: JwtRequest, now: float) -> Joined | NotJoined | Refusal:
        judged = await self._jwt.judge(request, now)
        settings = self._jwt.settings
        if isinstance(judged, Refusal):
            return judged
        if settings is None:  # a reload has removed it meanwhile
            return NotJoined("this endpoint does not accept JWT any more")
        decided = self._enrolments.join_by_jwt(
            request,
            judged,
            self._listed,
            now,
            lifetime=settings.lifetime,
            one_time=settings.one_time,
        )
        if isinstance(decided, Joined):
            _log_joined(decided, f"has joined as {judged.subject}", request)
        return decided

    def _decide(self, request: JoinRequest | RenewRequest, now: float) -> Joined | NotJoined | None:
        enrolments = self._enrolments
        if isinstance(request, JoinRequest):
            decided = enrolments.join(request, self._listed, now)
            what = "has joined"
        else:
            decided = enrolments.renew(request.old, request.sender, self._listed, now)
            what = "has another key now"
        if isinstance(decided, Joined):
            _log_joined(decided, what, request)
        return decided

    async def _hold(self, decided: Joined) -> Joined | Refusal:
        """Waits until a decision is saved and in force."""
        applied = self._changed()
        try:
            await asyncio.to_thread(self._file.sync)
        except OSError as error:
            return _not_written(error)
        await asyncio.wait([applied])
        return decided

    def _refuse(self, result: str, why: str) -> None:
        self._results.labels(result).inc()
        now = time.monotonic()
        if now - self._refused_since >= REQUESTS_PERIOD:
            self._refused, self._refused_since = 0, now
        self._refused += 1
        if self._refused <= REQUESTS_LOGGED:
            _log.warning("refused a request to join from %s: %s", remote_address.get(), why)
        if self._refused == REQUESTS_LOGGED:
            _log.warning(
                "further refused requests to join within %.0f s are only counted", REQUESTS_PERIOD
            )

    # --- commands -------------------------------------------------------------------------------

    async def answer(self, request: dict[str, Any]) -> Any:
        """Answers a request on the control socket. Raises :class:`ControlError`."""
        try:
            match request["op"]:
                case "invite":
                    return self._invite(request)
                case "peers":
                    return self._rows()
                case "revoke":
                    return await self._revoke(_text(request, "name"))
                case "forget":
                    return self._forget(_text(request, "name"))
                case other:
                    return self._withdraw(_text(request, "invitation"), other)
        except OSError as error:
            raise ControlError(f"nothing has changed: {error}") from None

    def _invite(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if isinstance(self._group, ListCopy):
            raise ControlError(self._group.elsewhere)
        if request.get("jwt"):
            if self._jwt.settings is None:
                raise ControlError("JWT is not accepted: the configuration has no [join.jwt]")
            return {"address": self._jwt.address, "issuer": self._jwt.settings.issuer}
        tag = _text(request, "tag", "")
        if tag and tag not in self._config.policies:
            known = ", ".join(self._config.policies) or "none"
            raise ControlError(f"there is no [policies.{clip(tag)}]; those that there are: {known}")
        now = time.time()
        expires = _number(request, "expires", 86_400, 1)
        lifetime = _number(request, "lifetime", 0, 0)
        try:
            token = self._enrolments.invite(
                tag, _number(request, "uses", 1, 1), int(now) + expires, lifetime, now
            )
        except ValueError as error:
            raise ControlError(str(error)) from None
        _log.info("invitation %s: tag %s, for %d s", token.id.hex(), tag or "-", expires)
        return {"token": str(token), "invitation": token.id.hex()}

    async def _revoke(self, name: str) -> dict[str, Any]:
        try:
            if self._is_copy:  # also works while the owner of the list cannot be reached
                member = self._enrolments.members[name]
                self._file.enrolments.bar(name, member.all_keys(), time.time())
                invitation = None
            else:
                invitation = self._file.enrolments.revoke(name, time.time())
        except KeyError:
            hint = " (it is in the configuration)" if name in self._listed.values() else ""
            raise ControlError(f"no host of the name {clip(name)} has joined{hint}") from None
        except ValueError as error:
            raise ControlError(str(error)) from None
        _log.info("the enrolment of %s is revoked", name)
        applied = self._changed()
        await asyncio.wait([applied])
        if applied.exception() is not None:
            raise ControlError(f"{clip(name)} is revoked from the next start on; see the log")
        try:
            await asyncio.to_thread(self._file.sync)
        except OSError as error:
            raise ControlError(f"{clip(name)} is revoked until a restart: {error}") from None
        result: dict[str, Any] = {"revoked": name}
        if isinstance(self._group, ListCopy):
            result["only_here"] = self._group.owner_name
        elif isinstance(self._group, ListOwner) and (behind := await self._group.told()):
            result["not_told"] = behind
        if invitation is not None:
            result |= {"invitation": invitation.id.hex(), "uses_left": invitation.uses}
        return result

    def _forget(self, name: str) -> dict[str, Any]:
        try:
            keys = [public_key_text(key) for key in self._file.enrolments.forget(name)]
        except KeyError:
            raise ControlError(
                f"{clip(name)} is neither a revoked key nor the name of a host with one"
            ) from None
        for key in keys:
            _log.info("the revoked key %s may join again", key)
        self._changed()
        return {"forgotten": keys}

    def _withdraw(self, invitation: str, op: object) -> dict[str, Any]:
        if op != "withdraw":
            raise ControlError(f"there is no request '{clip(op)}'")
        try:
            self._file.enrolments.withdraw(invitation)
        except KeyError:
            raise ControlError(f"there is no open invitation {clip(invitation)}") from None
        _log.info("invitation %s is withdrawn", invitation)
        return {"withdrawn": invitation}

    def _rows(self) -> dict[str, Any]:
        now = time.time()
        self._enrolments.expire(now)
        here = self._file.enrolments.revoked.values() if self._is_copy else ()
        result = rows_of(self._enrolments, here, now)
        return result if self._group is None else {"list": self._group.row(), **result}


_Decided: TypeAlias = Joined | NotJoined | Refusal | None


def _log_joined(decided: Joined, what: str, request: Request) -> None:
    _log.info(
        "the host %s %s: key %s, tag %s, from %s",
        decided.name,
        what,
        public_key_text(request.sender),
        decided.tag or "-",
        remote_address.get(),
    )


def _not_written(error: OSError) -> Refusal:
    _log.error("a host cannot join, because the list of members cannot be saved: %s", error)
    return Refusal("disk", "the endpoint cannot save its list of members; its log says why")


def _text(request: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = request.get(name, default)
    if not isinstance(value, str):
        raise ControlError(f"{name} has to be text, not {clip(value)}")
    return value


def _number(request: Mapping[str, Any], name: str, default: int, least: int) -> int:
    value = request.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LIFETIME_MAX:
        raise ControlError(f"{name} has to be a number from {least}, not {clip(value)}")
    return value
