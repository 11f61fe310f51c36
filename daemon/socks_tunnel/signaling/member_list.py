"""The invitations and members that an endpoint remembers. No files, no clock.

Each event is an entry, which is a map of plain values. :attr:`MemberList.record` gets it before
anything else is done, and :meth:`MemberList.replay` builds the same state from it again::

    {"entry": "invited", "id", "secret", "tag", "uses", "until", "lifetime"}
    {"entry": "withdrawn", "id"}
    {"entry": "joined", "name", "key", "tag", "until", "invitation", "at"}
    {"entry": "joined", …, "invitation": "", "subject", "token", "token_until"}     by a JWT
    {"entry": "spent", "token", "until"}                      a JWT that may not come again
    {"entry": "renewed", "name", "key", "old_until"}          another key, the old one for a while
    {"entry": "seen" or "revoked", "name", "at"}
    {"entry": "revoked-key", "name", "key", "at"}       the same, once its member is in no entry
    {"entry": "forgotten", "key"}                       a revoked key that may join again
    {"entry": "epoch", "epoch"}                         of the owner of a group's list
    {"entry": "left", "name"}                           in a copy: no member any more
    {"entry": "copied", "owner", "group", "epoch", "number", "at"}    the version of a copy

Keys are base64, other bytes are hexadecimal, and an `until` of 0 means no limit. An expired
invitation or enrolment is forgotten without an entry, because the entry that made it has the time.
A token of an identity provider that is good for one host is remembered until it would be refused
for its age. A revoked key is remembered until an administrator has it forgotten, because requests
to join are valid for minutes and can be repeated, and an invitation may have uses left.

A key that another one has taken the place of is good for a while, and is remembered as long as its
member is there: its enrolment is signed, and a rendezvous service has to be told that it is void.

:mod:`socks_tunnel.signaling.enrolments` decides who may join. Times are Unix time in seconds.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Protocol

from socks_tunnel.signaling.identity import parse_public_key, public_key_text

Entry = Mapping[str, Any]

REPLACED_MAX: Final = 128
"""Replaced keys that are remembered of one member; the oldest are forgotten first. An endpoint
replaces no more than these itself, so that only a copy ever forgets one."""


@dataclass(frozen=True, slots=True)
class Invitation:
    """Some number of hosts may join with this tag, until a time.

    `lifetime` is the number of seconds that each of them may stay; 0: no limit.
    """

    id: bytes
    secret: bytes = field(repr=False)
    tag: str
    uses: int
    until: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class Member:
    """A host that has joined. `old_key` is also accepted until `old_until`.

    The keys in `replaced`, the oldest first, were good earlier, and are good for nothing any more.

    If it joined with a token of an identity provider, `subject` is the user in it, `token` is the
    id of the token if that may not be used again, and `invitation` is empty.
    """

    name: str
    key: bytes
    tag: str
    until: int
    invitation: str
    joined_at: int
    seen_at: int = 0
    old_key: bytes = b""
    old_until: int = 0
    subject: str = ""
    token: str = ""
    replaced: tuple[bytes, ...] = ()

    def keys(self, now: float) -> list[bytes]:
        """Returns the keys that are accepted now, the newest first."""
        return [self.key, self.old_key] if self.old_until > now else [self.key]

    def all_keys(self) -> list[bytes]:
        """Returns the keys that are remembered, the newest first."""
        old = [self.old_key] if self.old_key else []
        return [self.key, *old, *reversed(self.replaced)]

    def past(self) -> tuple[bytes, ...]:
        """Returns the keys in whose place `key` is, the oldest first."""
        return (*self.replaced, self.old_key) if self.old_key else self.replaced


@dataclass(frozen=True, slots=True)
class Revoked:
    """A key that may not join again. `name` is the former name of its host."""

    key: bytes
    name: str
    at: int


class Journal(Protocol):
    """Remembers the order of changes."""

    def touch(self, subject: str | bytes) -> None:
        """Notes that a member (by its name) or a revoked key was changed or removed."""


class MemberList:
    """Invitations, members and revoked keys. `record` writes an entry down."""

    def __init__(self, record: Callable[[Entry], None]) -> None:
        self.record = record
        self.invitations: dict[bytes, Invitation] = {}
        self.members: dict[str, Member] = {}
        self.revoked: dict[bytes, Revoked] = {}
        self.epoch = 0
        """The latest epoch of the list, if it is that of a group."""
        self.journal: Journal | None = None
        """Is told of changes, if it is there."""
        self.copied: Entry = {}
        """The entry that says of which list this is a copy; empty if it is not a copy."""
        self._by_key: dict[bytes, str] = {}
        self._replaced: dict[bytes, str] = {}
        """Whose the keys are that are good for nothing any more."""
        self._spent: dict[bytes, int] = {}

    def name_of(self, key: bytes) -> str | None:
        """Returns the member with this key; None if no member has it."""
        return self._by_key.get(key)

    def replaced(self) -> list[bytes]:
        """Returns the keys of members that are good for nothing any more."""
        return list(self._replaced)

    def expire(self, now: float) -> bool:
        """Forgets what has expired. Returns whether a key is no longer accepted."""
        for each in list(self.invitations.values()):
            if each.until <= now:
                del self.invitations[each.id]
        for token, until in list(self._spent.items()):
            if until <= now:
                del self._spent[token]
        changed = False
        for member in list(self.members.values()):
            if member.until and member.until <= now:
                self._forget(member)
                changed = True
            elif member.old_key and member.old_until <= now:
                self._forget(member)
                self._enter(replace(member, old_key=b"", old_until=0, replaced=member.past()))
                changed = True
        return changed

    def _happen(self, entry: Entry) -> None:
        member = self.members.get(entry.get("name", ""))
        self.record(entry)  # this comes first: what cannot be recorded has not happened
        self.replay(entry)
        if self.journal is not None:
            self._note(self.journal, entry, member)

    @staticmethod
    def _note(journal: Journal, entry: Entry, member: Member | None) -> None:
        """Notes what an entry has changed. `member` is the earlier one with its name."""
        match entry["entry"]:
            case "joined" | "renewed":
                journal.touch(entry["name"])
            case "revoked" if member is not None:
                journal.touch(member.name)
                for key in member.all_keys():
                    journal.touch(key)
            case "revoked-key" | "forgotten":
                journal.touch(parse_public_key(entry["key"]))

    def replay(self, entry: Entry) -> None:
        """Applies an entry. Raises :class:`ValueError` for one that makes no sense."""
        try:
            self._replay(entry)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None

    def _replay(self, entry: Entry) -> None:
        match entry["entry"]:
            case "invited":
                invitation = Invitation(
                    id=bytes.fromhex(entry["id"]),
                    secret=bytes.fromhex(entry["secret"]),
                    tag=entry["tag"],
                    uses=int(entry["uses"]),
                    until=int(entry["until"]),
                    lifetime=int(entry["lifetime"]),
                )
                self.invitations[invitation.id] = invitation
            case "withdrawn":
                self.invitations.pop(bytes.fromhex(entry["id"]), None)
            case "joined":
                self._replay_joined(entry)
            case "renewed":
                member = self.members[entry["name"]]
                self._forget(member)
                self._enter(
                    _renewed(member, parse_public_key(entry["key"]), int(entry["old_until"]))
                )
            case "spent":
                self._spent[bytes.fromhex(entry["token"])] = int(entry["until"])
            case "seen":
                member = self.members[entry["name"]]
                self.members[member.name] = replace(member, seen_at=int(entry["at"]))
            case "revoked":
                member = self.members[entry["name"]]
                for key in reversed(member.all_keys()):
                    self.revoked[key] = Revoked(key, member.name, int(entry["at"]))
                self._forget(member)
            case "revoked-key":
                key = parse_public_key(entry["key"])
                self.revoked[key] = Revoked(key, entry["name"], int(entry["at"]))
            case "forgotten":
                self.revoked.pop(parse_public_key(entry["key"]), None)
            case "left":
                if entry["name"] in self.members:
                    self._forget(self.members[entry["name"]])
            case "epoch":
                self.epoch = int(entry["epoch"])
            case "copied":
                self.copied = entry
            case other:
                raise ValueError(f"the entry {other!r} is not known")

    def _replay_joined(self, entry: Entry) -> None:
        member = Member(
            name=entry["name"],
            key=parse_public_key(entry["key"]),
            tag=entry["tag"],
            until=int(entry["until"]),
            invitation=entry["invitation"],
            joined_at=int(entry["at"]),
            subject=entry.get("subject", ""),
            token=entry.get("token", ""),
        )
        if member.token and "token_until" in entry:
            self._spent[bytes.fromhex(member.token)] = int(entry["token_until"])
        invitation = self.invitations.get(bytes.fromhex(member.invitation))
        if invitation is not None:
            used = replace(invitation, uses=max(0, invitation.uses - 1))
            self.invitations[invitation.id] = used
        earlier = self.members.get(member.name)
        if earlier is not None and member.key in earlier.all_keys():
            past = tuple(each for each in reversed(earlier.all_keys()) if each != member.key)
            member = replace(member, replaced=past)
        self._let_go(member.key, self._by_key.get(member.key) or self._replaced.get(member.key))
        if member.name in self.members:
            self._forget(self.members[member.name])  # its time was over, or it is the same host
        self._enter(member)

    def _let_go(self, key: bytes, name: str | None) -> None:
        """Takes a key that joins from the member of this name, whose time, or its, was over."""
        if name is None:
            return
        member = self.members[name]
        self._forget(member)
        if key == member.key:
            return
        left = tuple(each for each in member.replaced if each != key)
        if key == member.old_key:
            member = replace(member, old_key=b"", old_until=0)
        self._enter(replace(member, replaced=left))

    def _enter(self, member: Member) -> None:
        member = replace(member, replaced=member.replaced[-REPLACED_MAX:])
        self.members[member.name] = member
        for key in (member.key, member.old_key):
            if key:
                self._by_key[key] = member.name
        for key in member.replaced:
            self._replaced[key] = member.name

    def _forget(self, member: Member) -> None:
        del self.members[member.name]
        for key in (member.key, member.old_key):
            if self._by_key.get(key) == member.name:
                del self._by_key[key]
        for key in member.replaced:
            if self._replaced.get(key) == member.name:
                del self._replaced[key]

    def entries(self) -> Iterator[Entry]:
        """Yields entries that make the present state, for a file that is rewritten."""
        for member in self.members.values():
            yield from entries_of(member)
        for revoked in self.revoked.values():
            yield {
                "entry": "revoked-key",
                "name": revoked.name,
                "key": public_key_text(revoked.key),
                "at": revoked.at,
            }
        for token, until in self._spent.items():
            yield {"entry": "spent", "token": token.hex(), "until": until}
        # These come after the members, because each entry of a member takes a use away.
        for each in self.invitations.values():
            yield {
                "entry": "invited",
                "id": each.id.hex(),
                "secret": each.secret.hex(),
                "tag": each.tag,
                "uses": each.uses,
                "until": each.until,
                "lifetime": each.lifetime,
            }
        if self.epoch:
            yield {"entry": "epoch", "epoch": self.epoch}
        if self.copied:
            yield self.copied


def _renewed(member: Member, key: bytes, old_until: int) -> Member:
    """Returns a member with another key. Without a time, the one before is good no more."""
    past = tuple(each for each in (*member.past(), member.key) if each != key)
    old = b""
    if old_until and member.key != key:
        *past_keys, old = past
        past = tuple(past_keys)
    return replace(member, key=key, old_key=old, old_until=old_until if old else 0, replaced=past)


def entries_of(member: Member) -> Iterator[Entry]:
    """Yields the entries that make the present state of a member."""
    first, *later = (*member.past(), member.key)
    yield {
        "entry": "joined",
        "name": member.name,
        "key": public_key_text(first),
        "tag": member.tag,
        "until": member.until,
        "invitation": member.invitation,
        "at": member.joined_at,
        # The time of a token is in an entry of its own, because its host may have left by then.
        **({"subject": member.subject} if member.subject else {}),
        **({"token": member.token} if member.token else {}),
    }
    for key in later:
        yield {
            "entry": "renewed",
            "name": member.name,
            "key": public_key_text(key),
            "old_until": member.old_until if key == member.key else 0,
        }
    if member.seen_at:
        yield {"entry": "seen", "name": member.name, "at": member.seen_at}
