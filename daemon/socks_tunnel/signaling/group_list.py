"""The messages by which several endpoints share a list of members. Sans-IO, no clock.

One endpoint of a group owns the list. The others keep copies, and ask the owner for changes. The
owner tells them when there are any. Requests and answers are carried like requests to join
(:mod:`socks_tunnel.signaling.joining`), signed by their sender, in the same two envelopes::

    request   { "kind": "list", "from", "to", "nonce", "expires",
                "group": str, "epoch": int, "number": int,           what the asker has
                "box": bin 32 }
    answer    { "kind": "listed", "from", "to", "in_reply_to",
                "group": str, "epoch": int, "number": int,           what it has then
                "reset": bool, "more": bool, "sealed": bin }

    request   { "kind": "list-changed", "from", "to", "nonce", "expires", "group": str }
    answer    { "kind": "list-noted", "from", "to", "in_reply_to", "group": str }

A version is an epoch and a number. The owner begins an epoch at each start, later than all before,
and numbers the changes in it. An answer has the changes after the number in the request, the oldest
first, as entries of :mod:`socks_tunnel.signaling.member_list` that can be applied twice. `more`
says that there are more changes to ask for at once. The entries have names, tags and users of a
whole fleet, which must stay confidential. So `sealed` is a msgpack list of them, encrypted by HPKE
as in :mod:`socks_tunnel.signaling.joining_jwt` for the X25519 key that the request has as `box`.
The asker makes a new key for each request. Its `info` binds it to the request::

    "socks-tunnel members" 0x00 | FROM 32 | TO 32 | NONCE 16          of the request

If the request is of another epoch, the owner cannot tell what has changed.
Then `reset` says that the whole list begins with this answer.

The carrier can drop and delay messages, and sees their sizes and times. An answer is signed, names
the group and both sides, and answers one nonce, so an old answer cannot be replayed. The asker
refuses a version below its own.
"""

import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import msgpack
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from socks_tunnel.protocol import bounded
from socks_tunnel.signaling.identity import PUBLIC_KEY_SIZE, PrivateIdentity, public_key_text
from socks_tunnel.signaling.joining import (
    LIFETIME,
    LIFETIME_MAX,
    NONCE_SIZE,
    JoinRejected,
    open_signed,
    seal,
)
from socks_tunnel.signaling.joining_jwt import BOX_KEY_SIZE, SUITE
from socks_tunnel.signaling.member_list import Entry, Member, MemberList, entries_of

ANSWER_MAX: Final = 65_536
"""Longest answer in bytes. It must fit into a parcel."""

ENTRIES_SIZE: Final = 49_152
"""Bytes of entries after which no further entry is added to an answer."""

GONE_MAX: Final = 4096
"""Removed hosts and keys of which the owner still knows when they were removed."""

_EPOCH_MAX: Final = (1 << 53) - 1
_GROUP_MAX: Final = 64
_TEXT_MAX: Final = 512
_TIME_MAX: Final = (1 << 53) - 1
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_BOUNDS: Final = bounded.Bounds(
    size=ANSWER_MAX, text=_TEXT_MAX, binary=ANSWER_MAX, entries=4096, items=32_768, depth=3
)

Version: TypeAlias = tuple[int, int]
"""Epoch and number."""

NO_VERSION: Final = (0, 0)


@dataclass(frozen=True, slots=True)
class ListRequest:
    """Asks for the changes after the version `since`."""

    sender: bytes
    to: bytes
    nonce: bytes
    group: str
    since: Version
    box: bytes
    """The key that the answer is encrypted to."""
    opener: X25519PrivateKey | None = field(default=None, repr=False, compare=False)
    """The private half of that key. Only the asker has it."""


@dataclass(frozen=True, slots=True)
class ListChanged:
    """Tells a copy that there are changes to ask for."""

    sender: bytes
    to: bytes
    nonce: bytes
    group: str


@dataclass(frozen=True, slots=True)
class Portion:
    """The content of an answer. `version` is the asker's version once it has applied this."""

    version: Version
    reset: bool
    more: bool
    entries: tuple[Entry, ...]


class Journal:
    """Remembers when each member and each revoked key changed, so that copies get only changes."""

    def __init__(self, members: MemberList, epoch: int) -> None:
        self._list = members
        self._epoch = epoch
        self._number = 0
        self._floor = 0
        self._subjects: dict[str | bytes, int] = {}
        """Names of members and revoked keys, in the order of their numbers."""
        for name in members.members:
            self.touch(name)
        for key in members.revoked:
            self.touch(key)

    @property
    def version(self) -> Version:
        """The version of the list."""
        return self._epoch, self._number

    def touch(self, subject: str | bytes) -> None:
        """Notes that a member (by its name) or a revoked key was changed or removed."""
        self._subjects.pop(subject, None)
        self._number += 1
        self._subjects[subject] = self._number
        there = len(self._list.members) + len(self._list.revoked)
        if len(self._subjects) > there + GONE_MAX:
            self._forget_gone()

    def _forget_gone(self) -> None:
        for subject, number in list(self._subjects.items()):
            if not self._is_there(subject):
                del self._subjects[subject]
                self._floor = number

    def _is_there(self, subject: str | bytes) -> bool:
        if isinstance(subject, str):
            return subject in self._list.members
        return subject in self._list.revoked

    def since(self, version: Version) -> Portion:
        """Returns the changes after a version, as many as fit into an answer."""
        epoch, number = version
        reset = epoch != self._epoch or not self._floor <= number <= self._number
        start = 0 if reset else number
        news = []
        for subject, at in reversed(self._subjects.items()):
            if at <= start:
                break
            news.append((subject, at))
        entries: list[Entry] = []
        size, last = 0, start
        for subject, at in reversed(news):
            if size >= ENTRIES_SIZE:
                return Portion((self._epoch, last), reset, True, tuple(entries))
            for entry in self._entries_of(subject):
                entries.append(entry)
                size += len(msgpack.packb(entry))
            last = at
        return Portion(self.version, reset, False, tuple(entries))

    def _entries_of(self, subject: str | bytes) -> Iterator[Entry]:
        if isinstance(subject, str):
            member = self._list.members.get(subject)
            if member is None:
                yield {"entry": "left", "name": subject}
            else:
                yield from _shared(member)
            return
        text = public_key_text(subject)
        revoked = self._list.revoked.get(subject)
        if revoked is None:
            yield {"entry": "forgotten", "key": text}
        else:
            yield {"entry": "revoked-key", "name": revoked.name, "key": text, "at": revoked.at}


def _shared(member: Member) -> Iterator[Entry]:
    """Yields the entries of a member, without the parts that only the owner needs."""
    for entry in entries_of(replace(member, replaced=())):
        if entry["entry"] != "seen":
            yield {key: value for key, value in entry.items() if key != "token"}


# --- messages ---------------------------------------------------------------------------------


def new_request(
    identity: PrivateIdentity, owner: bytes, group: str, since: Version, now: float
) -> tuple[bytes, ListRequest]:
    """Returns a signed request for changes, and its content."""
    nonce = secrets.token_bytes(NONCE_SIZE)
    opener = X25519PrivateKey.generate()
    box = opener.public_key().public_bytes_raw()
    request = ListRequest(identity.public, owner, nonce, group, since, box, opener)
    epoch, number = since
    sent = _request(identity, "list", request, now, epoch=epoch, number=number, box=box)
    return sent, request


def new_change(
    identity: PrivateIdentity, to: bytes, group: str, now: float
) -> tuple[bytes, ListChanged]:
    """Returns a signed message that there are changes, and its content."""
    change = ListChanged(identity.public, to, secrets.token_bytes(NONCE_SIZE), group)
    return _request(identity, "list-changed", change, now), change


def _request(
    identity: PrivateIdentity,
    kind: str,
    request: ListRequest | ListChanged,
    now: float,
    **more: int | bytes,
) -> bytes:
    body = {
        "kind": kind,
        "from": request.sender,
        "to": request.to,
        "nonce": request.nonce,
        "expires": int(now) + LIFETIME,
        "group": request.group,
        **more,
    }
    return seal(identity, body)


def open_request(
    data: bytes, own: bytes, group: str, endpoints: Mapping[bytes, str], now: float
) -> ListRequest | ListChanged | None:
    """Returns the request of an endpoint of our group; None if it is of another kind.

    Raises :class:`JoinRejected`.
    """
    try:
        kind = _kind(data)
    except bounded.Malformed:
        return None
    if kind not in {"list", "list-changed"}:
        return None
    fields = open_signed(data)
    try:
        sender = bounded.binary(fields, "from", PUBLIC_KEY_SIZE)
        to = bounded.binary(fields, "to", PUBLIC_KEY_SIZE)
        nonce = bounded.binary(fields, "nonce", NONCE_SIZE)
        named = bounded.text(fields, "group")
        expires = bounded.integer(fields, "expires", 0, _TIME_MAX)
        since, box = NO_VERSION, b""
        if kind == "list":
            since = (
                bounded.integer(fields, "epoch", 0, _EPOCH_MAX),
                bounded.integer(fields, "number", 0, _EPOCH_MAX),
            )
            box = bounded.binary(fields, "box", BOX_KEY_SIZE)
    except bounded.Malformed as error:
        raise JoinRejected(f"the request for the list: {error}") from None
    if to != own or sender not in endpoints or named != group:
        raise JoinRejected("the request for the list is not of an endpoint of this group")
    if not now < expires <= now + LIFETIME_MAX:
        raise JoinRejected("the request for the list has expired, or a clock is wrong")
    if kind == "list":
        return ListRequest(sender, to, nonce, named, since, box)
    return ListChanged(sender, to, nonce, named)


def _kind(data: bytes) -> str:
    outer = bounded.unpack_map(data, _BOUNDS)
    return bounded.text(bounded.unpack_map(bounded.binary(outer, "body"), _BOUNDS), "kind")


def answer_to(identity: PrivateIdentity, request: ListRequest, portion: Portion) -> bytes:
    """Returns the signed answer to a request.

    Raises :class:`JoinRejected` if nothing can be encrypted to the key in the request.
    """
    epoch, number = portion.version
    packed: bytes = msgpack.packb([dict(entry) for entry in portion.entries])
    try:
        box = X25519PublicKey.from_public_bytes(request.box)
        sealed: bytes = SUITE.encrypt(packed, box, _info(request))
    except ValueError:
        raise JoinRejected("nothing can be encrypted to the key in the request") from None
    body: dict[str, Any] = {
        "kind": "listed",
        "from": identity.public,
        "to": request.sender,
        "in_reply_to": request.nonce,
        "group": request.group,
        "epoch": epoch,
        "number": number,
        "reset": portion.reset,
        "more": portion.more,
        "sealed": sealed,
    }
    return seal(identity, body)


def noted(identity: PrivateIdentity, change: ListChanged) -> bytes:
    """Returns the signed answer to the message that there are changes."""
    body = {
        "kind": "list-noted",
        "from": identity.public,
        "to": change.sender,
        "in_reply_to": change.nonce,
        "group": change.group,
    }
    return seal(identity, body)


def open_answer(data: bytes, request: ListRequest) -> Portion:
    """Returns the answer of the owner of the list. Raises :class:`JoinRejected`."""
    fields = _opened(data, request, "listed")
    try:
        rows = _unsealed(bounded.binary(fields, "sealed"), request)
        return Portion(
            (
                bounded.integer(fields, "epoch", 0, _EPOCH_MAX),
                bounded.integer(fields, "number", 0, _EPOCH_MAX),
            ),
            bounded.boolean(fields, "reset"),
            bounded.boolean(fields, "more"),
            tuple(map(_entry, rows)),
        )
    except bounded.Malformed as error:
        raise JoinRejected(f"the list: {error}") from None


def _info(request: ListRequest) -> bytes:
    return b"socks-tunnel members\0" + request.sender + request.to + request.nonce


def _unsealed(sealed: bytes, request: ListRequest) -> list[Any]:
    """Returns the entries in an answer. Raises :class:`JoinRejected` or :class:`Malformed`."""
    assert request.opener is not None, "this host made the request"
    try:
        packed: bytes = SUITE.decrypt(sealed, request.opener, _info(request))
    except (InvalidTag, ValueError):
        raise JoinRejected("the list was encrypted for another request") from None
    rows = bounded.unpack(packed, _BOUNDS)
    if not isinstance(rows, list):
        raise bounded.Malformed("the entries are no list")
    return rows


def check_noted(data: bytes, change: ListChanged) -> None:
    """Checks the answer to the message about changes. Raises :class:`JoinRejected`."""
    _opened(data, change, "list-noted")


def _opened(data: bytes, request: ListRequest | ListChanged, kind: str) -> dict[str, Any]:
    fields = open_signed(data, request.to, _BOUNDS)
    if (
        fields.get("kind") != kind
        or fields.get("to") != request.sender
        or fields.get("in_reply_to") != request.nonce
        or fields.get("group") != request.group
    ):
        raise JoinRejected("it is the answer to another request")
    return fields


def _entry(fields: object) -> Entry:
    """Returns an entry of a list after checking all its values. Raises :class:`Malformed`."""
    if not isinstance(fields, dict):
        raise bounded.Malformed("an entry is no map")
    kind = bounded.text(fields, "entry")
    entry: dict[str, Any] = {"entry": kind}
    for name in _TEXTS.get(kind, ()):
        entry[name] = bounded.text(fields, name, "" if name == "subject" else None)
    for name in _TIMES.get(kind, ()):
        entry[name] = bounded.integer(fields, name, 0, _TIME_MAX)
    if kind not in _TEXTS or not _NAME.fullmatch(entry.get("name", "x")):
        raise bounded.Malformed("an entry is not understood")
    return entry


_TEXTS: Final[Mapping[str, tuple[str, ...]]] = {
    "joined": ("name", "key", "tag", "invitation", "subject"),
    "renewed": ("name", "key"),
    "left": ("name",),
    "revoked-key": ("name", "key"),
    "forgotten": ("key",),
}
_TIMES: Final[Mapping[str, tuple[str, ...]]] = {
    "joined": ("until", "at"),
    "renewed": ("old_until",),
    "revoked-key": ("at",),
}
