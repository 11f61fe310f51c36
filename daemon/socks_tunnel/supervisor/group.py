"""One list of members for several endpoints: one of them owns it, the others have copies.

The owner's members are those of its file of enrolments, as without a group. A copy is a file of its
own, and the members in it are the peers of its endpoint. What goes over the wire, and why it can be
believed, is in :mod:`socks_tunnel.signaling.group_list`.

A copy asks the owner each :data:`POLL` seconds, and at once when the owner reports a change. The
owner repeats the report until the other endpoint has asked. While the owner is away, a copy with
all its revocations stays in force for at most `max_age`.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

from socks_tunnel.config.settings import Config, Group
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.bounded import clip
from socks_tunnel.signaling.carrier import SignalingError
from socks_tunnel.signaling.enrolment_file import DamagedFileError, EnrolmentFile
from socks_tunnel.signaling.enrolments import MEMBERS_MAX, REVOKED_MAX, Enrolments
from socks_tunnel.signaling.group_list import (
    NO_VERSION,
    Journal,
    ListChanged,
    ListRequest,
    Portion,
    Version,
    answer_to,
    check_noted,
    new_change,
    new_request,
    noted,
    open_answer,
    open_request,
)
from socks_tunnel.signaling.identity import PrivateIdentity, parse_public_key
from socks_tunnel.signaling.joining import JoinRejected
from socks_tunnel.signaling.member_list import Entry

_log = logging.getLogger(__name__)

POLL: Final = 10.0
"""Seconds between two questions of a copy, if the owner reports no change."""

ASK_TIMEOUT: Final = 5.0
"""Seconds that an endpoint waits for the answer of another one of its group."""

GATHER: Final = 0.1
"""Seconds in which changes are gathered before the owner tells of them."""

RETRY_MIN: Final = 0.25
RETRY_MAX: Final = 5.0
"""Bounds of the pause between two attempts to reach another endpoint, in seconds."""

AWAY_AFTER: Final = 30.0
"""Seconds without an answer after which the absence of the owner is logged."""

TOLD_WITHIN: Final = 2.0
"""Seconds that a revocation waits for the other endpoints to get it. After that it names those that
have not."""

WRITTEN_EACH: Final = 3600.0
"""Least seconds between two times at which the time of the owner's last answer is saved."""

COPIED_MAX: Final = 2 * (MEMBERS_MAX + REVOKED_MAX)
"""Most entries of a whole list, which wait in memory until its last part has come."""

CLOCK_BACK: Final = 300.0
"""Seconds by which the clock may be behind the time of the owner's last answer after a restart. If
it is more, the age of the copy is unknown, and it counts as too old."""

Ask: TypeAlias = Callable[[bytes, bytes, float], Awaitable[bytes]]
"""Sends a request to the endpoint with a key, and returns the answer within so many seconds. Raises
:class:`SignalingError`."""


class _Part:
    """The common part of owner and copies: the group, and requests of its endpoints."""

    def __init__(self, group: Group, identity: PrivateIdentity) -> None:
        self.name = group.name
        self.owner_name = group.owner
        self._identity = identity
        self._keys = {parse_public_key(each.public_key): each.name for each in group.endpoints}
        self._owner = next(key for key, name in self._keys.items() if name == group.owner)
        self._others = {key: name for key, name in self._keys.items() if key != identity.public}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def elsewhere(self) -> str:
        """A sentence that says where hosts join."""
        return f"hosts join at {self.owner_name}, which owns the list of {self.name}"

    def opened(self, data: bytes) -> ListRequest | ListChanged | None:
        """Returns a request of an endpoint of the group; None for any other request.

        Raises :class:`JoinRejected`.
        """
        return open_request(data, self._identity.public, self.name, self._others, time.time())

    async def stop(self) -> None:
        """Stops asking and reporting."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()


class ListOwner(_Part):
    """The endpoint that owns the list."""

    def __init__(self, group: Group, identity: PrivateIdentity, enrolments: Enrolments) -> None:
        super().__init__(group, identity)
        epoch = enrolments.begin_epoch(time.time())
        self._journal = enrolments.journal = Journal(enrolments, epoch)
        self._have: dict[bytes, Version] = {}
        self._asked = asyncio.Event()
        self._changed = {key: asyncio.Event() for key in self._others}

    def start(self, ask: Ask) -> None:
        """Reports changes to the other endpoints from now on."""
        self._tasks = [
            spawn(f"tell {name} of members", self._tell(key, ask))
            for key, name in self._others.items()
        ]

    def changed(self) -> None:
        """Reports a change of the list."""
        for event in self._changed.values():
            event.set()

    def handle(self, request: ListRequest | ListChanged) -> bytes | None:
        """Returns the answer to another endpoint; None for a request that is only for copies.

        Raises :class:`JoinRejected` for a request that cannot be answered.
        """
        if isinstance(request, ListChanged):
            return None
        self._have[request.sender] = request.since
        self._asked.set()
        return answer_to(self._identity, request, self._journal.since(request.since))

    def behind(self) -> list[str]:
        """Returns the names of the endpoints that do not have the latest version."""
        version = self._journal.version
        return [name for key, name in self._others.items() if self._have.get(key) != version]

    async def told(self) -> list[str]:
        """Waits for the others to get the latest version; returns who has not got it in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TOLD_WITHIN):
                while self.behind():
                    self._asked.clear()
                    await self._asked.wait()
        return self.behind()

    async def _tell(self, key: bytes, ask: Ask) -> None:
        event, pause = self._changed[key], RETRY_MIN
        while True:
            if self._have.get(key) == self._journal.version:
                await event.wait()
            if event.is_set():
                event.clear()
                pause = RETRY_MIN
                await asyncio.sleep(GATHER)
            sent, change = new_change(self._identity, key, self.name, time.time())
            try:
                check_noted(await ask(key, sent, ASK_TIMEOUT), change)
            except (SignalingError, JoinRejected) as error:
                _log.debug("%s is not told of members: %s", self._others[key], clip(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await event.wait()
            pause = min(2 * pause, RETRY_MAX)

    def row(self) -> dict[str, Any]:
        """Returns the row of `peers` about the list."""
        return {
            "group": self.name,
            "owner": self.owner_name,
            "version": _text(self._journal.version),
            "behind": self.behind(),
        }


class ListCopy(_Part):
    """An endpoint that has a copy at `path`.

    `changed` is called when the members have changed, and `heard` with the Unix time of each answer
    of the owner. Raises :class:`OSError` if the file cannot be used.
    """

    def __init__(
        self,
        group: Group,
        identity: PrivateIdentity,
        path: Path,
        changed: Callable[[], object],
        heard: Callable[[float], None],
    ) -> None:
        super().__init__(group, identity)
        self._max_age = group.max_age
        try:
            self._file = EnrolmentFile(path, identity)
        except DamagedFileError as error:
            # The owner has the whole list. No member is admitted until it has answered.
            _log.warning("%s; the owner is asked for a new copy", error)
            path.replace(path.with_suffix(".damaged"))
            self._file = EnrolmentFile(path, identity)
        self._applied = changed
        self._heard = heard
        self._hint = asyncio.Event()
        self._fresh: list[Entry] | None = None
        """The entries so far of a whole list that comes in parts; None if none is on its way."""
        self._unwritten = False
        """Whether the file lacks changes that are in force. It is then written as a whole."""
        self._heard_at_boottime: float | None = None
        """`_heard_at` by a clock that cannot be set; None if it was before the start."""
        self._away_told = False
        self._problem = ""
        of = self._file.enrolments.copied
        if of and (of.get("owner"), of.get("group")) != (self._owner.hex(), self.name):
            _log.warning("%s is the copy of another group's list: emptying it", path)
            self._file.replace([])
        copied = self._file.enrolments.copied
        self._cursor: Version = copied.get("epoch", 0), copied.get("number", 0)
        self._heard_at = float(copied.get("at", 0))
        heard(self._heard_at)

    @property
    def enrolments(self) -> Enrolments:
        """The members of the copy."""
        return self._file.enrolments

    @property
    def _version(self) -> Version:
        copied = self._file.enrolments.copied
        return copied.get("epoch", 0), copied.get("number", 0)

    def is_stale(self, now: float) -> bool:
        """Returns whether the copy is older than `max_age`, so that it admits nobody.

        `now` is Unix time. A clock that is set back does not make the copy younger.
        """
        if not self._max_age:
            return False
        if self._heard_at_boottime is not None:
            return _boottime() - self._heard_at_boottime > self._max_age
        return not -CLOCK_BACK <= now - self._heard_at <= self._max_age

    def start(self, ask: Ask) -> None:
        """Asks the owner from now on."""
        self._tasks = [spawn("follow the list of members", self._follow(ask))]

    def handle(self, request: ListRequest | ListChanged) -> bytes | None:
        """Returns the answer to another endpoint; None for a request that is not for a copy."""
        if isinstance(request, ListRequest) or request.sender != self._owner:
            return None
        self._hint.set()
        return noted(self._identity, request)

    async def _follow(self, ask: Ask) -> None:
        pause = RETRY_MIN
        while True:
            self._hint.clear()
            wait = POLL
            try:
                portion = await self._ask(ask)
            except (SignalingError, JoinRejected, OSError) as error:
                self._failed(clip(error))
                pause = min(2 * pause, RETRY_MAX)
                wait = pause
            else:
                pause = RETRY_MIN
                if portion.more or portion.entries:
                    continue  # the last question tells the owner the version that is here
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._hint.wait()

    async def _ask(self, ask: Ask) -> Portion:
        now = time.time()
        sent, request = new_request(self._identity, self._owner, self.name, self._cursor, now)
        portion = open_answer(await ask(self._owner, sent, ASK_TIMEOUT), request)
        before = self._version
        self._take(portion)
        if self._version != before:
            self._applied()
            try:
                await asyncio.to_thread(self._file.sync)
            except OSError as error:
                self._not_written(error)
            _log.info(
                "list of version %s from %s: %d members, %d revoked keys",
                _text(self._version),
                self.owner_name,
                len(self.enrolments.members),
                len(self.enrolments.revoked),
            )
        return portion

    def _take(self, portion: Portion) -> None:
        """Applies an answer. Raises :class:`JoinRejected` for a list older than the copy."""
        now = time.time()
        if portion.reset:
            self._fresh = []
        whole = self._fresh is not None and not portion.more
        if portion.version[0] < self._version[0] or (
            (whole or self._fresh is None) and portion.version < self._version
        ):
            self._fresh, self._cursor = None, self._version
            raise JoinRejected(
                f"{self.owner_name} has the version {_text(portion.version)} of the list, which is"
                f" older than {_text(self._version)} here; was it restored, or its clock set back?"
            )
        if self._fresh is None:
            self._apply(portion, now)
        else:
            self._fresh.extend(portion.entries)
            if len(self._fresh) > COPIED_MAX:
                self._fresh, self._cursor = None, self._version
                raise JoinRejected(f"the list has more than {COPIED_MAX} entries")
            if whole:
                seen = [
                    {"entry": "seen", "name": member.name, "at": member.seen_at}
                    for member in self.enrolments.members.values()
                    if member.seen_at
                ]
                here = {each["name"] for each in self._fresh if each["entry"] == "joined"}
                seen = [each for each in seen if each["name"] in here]
                whole_list = [*self._fresh, *seen, self._copied(portion.version, now)]
                self._fresh = None
                self._write_whole(whole_list)
        self._cursor = portion.version
        self._problem = ""
        if self._away_told:
            self._away_told = False
            _log.info("%s, which owns the list of members, answers again", self.owner_name)
        self._heard_at, self._heard_at_boottime = now, _boottime()
        self._heard(now)

    def _apply(self, portion: Portion, now: float) -> None:
        written_at = float(self.enrolments.copied.get("at", 0))
        is_news = portion.version != self._version or now - written_at >= WRITTEN_EACH
        if is_news:
            for entry in (*portion.entries, self._copied(portion.version, now)):
                self._record(entry)
                try:
                    self.enrolments.replay(entry)
                except ValueError as error:
                    _log.warning("the list of %s: left out: %s", self.owner_name, clip(error))
        if self._unwritten:
            self._write_whole(list(self.enrolments.entries()))

    def _record(self, entry: Entry) -> None:
        """Appends an entry to the file, unless an earlier one is missing there.

        The last entry of an answer says which version the file has. It must not come after a gap,
        or the owner would not be asked for the missing entries after a restart.
        """
        if self._unwritten:
            return
        try:
            self.enrolments.record(entry)
        except OSError as error:
            self._not_written(error)

    def _write_whole(self, entries: list[Entry]) -> None:
        try:
            self._file.replace(entries)
        except OSError as error:
            self._not_written(error)
            return
        if self._unwritten:
            self._unwritten = False
            _log.info("the list of members is saved again")

    def _not_written(self, error: OSError) -> None:
        """Logs that the file cannot be written. The list is in force all the same.

        So a full disk does not let revoked hosts in.
        """
        if not self._unwritten:
            _log.error(
                "the list of members cannot be saved; this endpoint tries again, and would have to"
                " ask %s for it after a restart: %s",
                self.owner_name,
                clip(error),
            )
        self._unwritten = True

    def _copied(self, version: Version, now: float) -> Entry:
        return {
            "entry": "copied",
            "owner": self._owner.hex(),
            "group": self.name,
            "epoch": version[0],
            "number": version[1],
            "at": int(now),
        }

    def _failed(self, problem: str) -> None:
        self._problem = problem
        if self._away_told or time.time() - self._heard_at < AWAY_AFTER:
            return
        self._away_told = True
        _log.warning(
            "no answer from %s, which owns the list of members, since %s: %s; "
            "the copy stays in force%s",
            self.owner_name,
            _iso(self._heard_at) or "ever",
            problem,
            f" for {self._max_age} s" if self._max_age else "",
        )

    def row(self) -> dict[str, Any]:
        """Returns what `peers` says of the list."""
        return {
            "group": self.name,
            "owner": self.owner_name,
            "version": _text(self._version),
            "heard": _iso(self._heard_at),
            "problem": self._problem or None,
        }


GroupPart: TypeAlias = ListOwner | ListCopy


def part_of(
    config: Config,
    identity: PrivateIdentity,
    own: Enrolments,
    path: Path,
    changed: Callable[[], object],
    metrics: Metrics,
) -> GroupPart | None:
    """Returns an endpoint's part in the group of its configuration; None if there is no group.

    `own` are the endpoint's own members. The copy is at `path`. Raises :class:`ValueError` with a
    sentence if the endpoint is not in the group, and :class:`OSError` if the copy cannot be used.
    """
    group = config.join.group
    if group is None:
        return None
    names: Mapping[bytes, str] = {
        parse_public_key(each.public_key): each.name for each in group.endpoints
    }
    name = names.get(identity.public)
    if name is None:
        raise ValueError(
            "join.group: none of the endpoints has the public key of this endpoint "
            f"({identity.public_text})"
        )
    if name == group.owner:
        return ListOwner(group, identity, own)
    if own.members:
        _log.warning(
            "%d hosts have joined this endpoint alone, and are refused while %s owns the list of"
            " members; have them join there",
            len(own.members),
            group.owner,
        )
    heard = metrics.membership_list_heard_seconds.labels("copied").set
    return ListCopy(group, identity, path, changed, heard)


def _boottime() -> float:
    """Returns seconds since the start of the system, including those asleep."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _text(version: Version) -> str:
    return "none" if version == NO_VERSION else f"{version[0]}.{version[1]}"


def _iso(moment: float) -> str | None:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds") if moment else None
