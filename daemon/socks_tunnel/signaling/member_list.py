"""What an endpoint remembers of who may join it and who has joined. No files, no clock.

Everything that happens is an entry, a map of plain values, which :attr:`MemberList.record` gets
before anything else is done, and from which :meth:`MemberList.replay` builds the same state again::

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

Keys are base64, other bytes are hexadecimal, and an `until` of 0 is none. An invitation or an
enrolment whose time is over is forgotten without an entry: its time is in the one that made it.
A token of an identity provider that is good for one host is remembered until it would be refused
for its age anyway. A revoked key is remembered until an administrator has it forgotten: requests to
join are good for minutes and can be repeated, and an invitation may have uses left.

A key that another one has taken the place of is good for a while, and is remembered as long as its
member is there: its enrolment is signed, and a rendezvous service has to be told that it is void.

Who may join, :mod:`socks_tunnel.signaling.enrolments` decides. Times are Unix time in seconds.
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
    """So many hosts may join with this tag, until a time.

    `lifetime` is for how many seconds each of them stays; 0: without an end.
    """

    id: bytes
    secret: bytes = field(repr=False)
    tag: str
    uses: int
    until: int
    lifetime: int


@dataclass(frozen=True, slots=True)
class Member:
    """A host that has joined. `old_key` is good besides `key` until `old_until`.

    The keys in `replaced`, the oldest first, were good earlier, and are good for nothing any more.

    Where a token of an identity provider was shown, `subject` is whom that named, `token` is the id
    of the token if it may not come again, and `invitation` is empty.
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
        """Returns the keys that are good now, the newest first."""
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
    """A key that may not join again. `name` is what its host was called."""

    key: bytes
    name: str
    at: int


class Journal(Protocol):
    """Remembers in which order things changed."""

    def touch(self, subject: str | bytes) -> None:
        """Notes that a member (by its name), or a revoked key, has changed or is gone."""


class MemberList:
    """Invitations, members and revoked keys. `record` writes an entry down."""

    def __init__(self, record: Callable[[Entry], None]) -> None:
        self.record = record
        self.invitations: dict[bytes, Invitation] = {}
        self.members: dict[str, Member] = {}
        self.revoked: dict[bytes, Revoked] = {}
        self.epoch = 0
        """The latest epoch of the list, where it is a group's."""
        self.journal: Journal | None = None
        """Who has to know of changes; None if nobody."""
        self.copied: Entry = {}
        """The entry that says of what this is a copy; empty if it is none."""
        self._by_key: dict[bytes, str] = {}
        self._replaced: dict[bytes, str] = {}
        """Whose the keys are that are good for nothing any more."""
        self._spent: dict[bytes, int] = {}

    def name_of(self, key: bytes) -> str | None:
        """Returns whose key this is; None if it is no member's."""
        return self._by_key.get(key)

    def replaced(self) -> list[bytes]:
        """Returns the keys of members that are good for nothing any more."""
        return list(self._replaced)

    def expire(self, now: float) -> bool:
        """Forgets what has ended; returns whether a key is not good any more."""
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
        self.record(entry)  # first: what cannot be written down has not happened
        self.replay(entry)
        if self.journal is not None:
            self._note(self.journal, entry, member)

    @staticmethod
    def _note(journal: Journal, entry: Entry, member: Member | None) -> None:
        """Notes what an entry has changed. `member` is the one of its name before that."""
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
        """Takes an entry into account. Raises :class:`ValueError` for one that makes no sense."""
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
        """Yields entries that make the present state, for a file that is written anew."""
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
        # After the members: each entry of a member would take a use away.
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
    """Yields entries that make a member what it is."""
    first, *later = (*member.past(), member.key)
    yield {
        "entry": "joined",
        "name": member.name,
        "key": public_key_text(first),
        "tag": member.tag,
        "until": member.until,
        "invitation": member.invitation,
        "at": member.joined_at,
        # When a token may come again is in an entry of its own: its host may be gone by then.
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
