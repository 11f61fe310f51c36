"""Who has joined an endpoint, and who still may. No files, no clock: `now` is Unix time in seconds.

Everything that happens is an entry, a map of plain values, which :attr:`Enrolments.record` gets
before anything else is done, and from which :meth:`Enrolments.replay` builds the same state again::

    {"entry": "invited", "id", "secret", "tag", "uses", "until", "lifetime"}
    {"entry": "withdrawn", "id"}
    {"entry": "joined", "name", "key", "tag", "until", "invitation", "at"}
    {"entry": "joined", …, "invitation": "", "subject", "token", "token_until"}     by a JWT
    {"entry": "spent", "token", "until"}                      a JWT that may not come again
    {"entry": "renewed", "name", "key", "old_until"}          another key, the old one for a while
    {"entry": "seen" or "revoked", "name", "at"}
    {"entry": "revoked-key", "name", "key", "at"}       the same, once its member is in no entry
    {"entry": "forgotten", "key"}                       a revoked key that may join again

Keys are base64, other bytes are hexadecimal, and an `until` of 0 is none. An invitation or an
enrolment whose time is over is forgotten without an entry: its time is in the one that made it.
A token of an identity provider that is good for one host is remembered until it would be refused
for its age anyway. A revoked key is remembered until an administrator has it forgotten: requests to
join are good for minutes and can be repeated, and an invitation may have uses left.
"""

import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from socks_tunnel.signaling.identity import PrivateIdentity, parse_public_key, public_key_text
from socks_tunnel.signaling.joining import (
    ID_SIZE,
    SECRET_SIZE,
    Joined,
    JoinRequest,
    JwtRequest,
    NotJoined,
    Token,
    enrolment_for,
)

if TYPE_CHECKING:  # it brings PyJWT, which only those load who take such tokens
    from socks_tunnel.signaling.jwt_tokens import Accepted

MEMBERS_MAX: Final = 16_384
"""Hosts that may have joined one endpoint."""

INVITATIONS_MAX: Final = 1024
"""Invitations that may be open at a time."""

USES_MAX: Final = 100_000
"""Hosts that one invitation may be for."""

SPENT_MAX: Final = 65_536
"""Tokens of an identity provider that are remembered, so that none is used twice."""

REVOKED_MAX: Final = 65_536
"""Keys that are revoked at a time. Only an administrator adds one, and only he takes one away."""

SEEN_PERIOD: Final = 3600.0
"""Seconds in which the last time that a member was seen is written down at most once."""

OLD_KEY_LIFETIME: Final = 24 * 3600
"""Seconds for which a key is good after another one has taken its place."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_MAX: Final = 64

Entry = Mapping[str, Any]


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

    def keys(self, now: float) -> list[bytes]:
        """Returns the keys that are good now, the newest first."""
        return [self.key, self.old_key] if self.old_until > now else [self.key]

    def all_keys(self) -> list[bytes]:
        """Returns the keys that are remembered, the newest first."""
        return [self.key, self.old_key] if self.old_key else [self.key]


@dataclass(frozen=True, slots=True)
class Revoked:
    """A key that may not join again. `name` is what its host was called."""

    key: bytes
    name: str
    at: int


class Enrolments:
    """Invitations and members of one endpoint. `record` writes an entry down."""

    def __init__(self, identity: PrivateIdentity, record: Callable[[Entry], None]) -> None:
        self.record = record
        self.invitations: dict[bytes, Invitation] = {}
        self.members: dict[str, Member] = {}
        self.revoked: dict[bytes, Revoked] = {}
        self._identity = identity
        self._by_key: dict[bytes, str] = {}
        self._spent: dict[bytes, int] = {}

    # --- what an administrator does -------------------------------------------------------------

    def invite(self, tag: str, uses: int, until: int, lifetime: int, now: float) -> Token:
        """Returns a new invitation. Raises :class:`ValueError` with a sentence."""
        self.expire(now)
        if not 1 <= uses <= USES_MAX:
            raise ValueError(f"an invitation is for 1 to {USES_MAX} hosts, not for {uses}")
        if len(self.invitations) >= INVITATIONS_MAX:
            raise ValueError(f"{INVITATIONS_MAX} invitations are open; withdraw some")
        token = Token(
            self._identity.public,
            secrets.token_bytes(ID_SIZE),
            secrets.token_bytes(SECRET_SIZE),
        )
        self._happen(
            {
                "entry": "invited",
                "id": token.id.hex(),
                "secret": token.secret.hex(),
                "tag": tag,
                "uses": uses,
                "until": until,
                "lifetime": lifetime,
            }
        )
        return token

    def withdraw(self, invitation: str) -> None:
        """Ends an invitation, named by its id in hexadecimal. Raises :class:`KeyError`."""
        if invitation not in {each.hex() for each in self.invitations}:
            raise KeyError(invitation)
        self._happen({"entry": "withdrawn", "id": invitation})

    def revoke(self, name: str, now: float) -> Invitation | None:
        """Ends a member's enrolment; its keys cannot join again until they are forgotten.

        Returns the invitation by which it had joined, if others can still join by it. Raises
        :class:`KeyError`, and :class:`ValueError` with a sentence.
        """
        self.expire(now)
        member = self.members[name]
        if len(self.revoked) + len(member.all_keys()) > REVOKED_MAX:
            raise ValueError(f"{REVOKED_MAX} keys are revoked; have some forgotten first")
        self._happen({"entry": "revoked", "name": name, "at": int(now)})
        invitation = self.invitations.get(bytes.fromhex(member.invitation))
        return invitation if invitation is not None and invitation.uses else None

    def forget(self, named: str) -> list[bytes]:
        """Lets revoked keys join again: one, or all of a host by its name. Returns them.

        Raises :class:`KeyError` if there are none.
        """
        keys = [
            each.key
            for each in self.revoked.values()
            if named in {each.name, public_key_text(each.key)}
        ]
        if not keys:
            raise KeyError(named)
        for key in keys:
            self._happen({"entry": "forgotten", "key": public_key_text(key)})
        return keys

    def name_of(self, key: bytes) -> str | None:
        """Returns whose key this is; None if it is no member's."""
        return self._by_key.get(key)

    # --- what hosts do --------------------------------------------------------------------------

    def join(
        self, request: JoinRequest, listed: Mapping[bytes, str], now: float
    ) -> Joined | NotJoined | None:
        """Decides about a request; None if its proof is wrong, which nobody is to be told.

        `listed` are the names of the peers in the configuration, by key.
        """
        self.expire(now)
        invitation = self.invitations.get(request.invitation)
        if invitation is None or not request.proves(invitation.secret):
            return None
        if (refused := self._barred(request.sender, listed)) is not None:
            return refused
        known = self._by_key.get(request.sender)
        if known is not None and self.members[known].invitation == invitation.id.hex():
            return self._answer(self.members[known])  # its answer was lost
        if not invitation.uses:
            return NotJoined("the invitation has been used up")
        return self._admit(
            request,
            listed,
            now,
            tag=invitation.tag,
            lifetime=invitation.lifetime,
            more={"invitation": invitation.id.hex()},
        )

    def join_by_jwt(
        self,
        request: JwtRequest,
        token: "Accepted",
        listed: Mapping[bytes, str],
        now: float,
        *,
        lifetime: int,
        one_time: bool,
    ) -> Joined | NotJoined:
        """Decides about a request whose token of an identity provider is good.

        `lifetime` is for how many seconds the host stays; 0: without an end.
        """
        self.expire(now)
        if (refused := self._barred(request.sender, listed)) is not None:
            return refused
        if one_time and token.id in self._spent:
            known = self._by_key.get(request.sender)
            if known is not None and self.members[known].token == token.id.hex():
                return self._answer(self.members[known])  # its answer was lost
            return NotJoined("the JWT was used already; get a fresh one")
        if one_time and len(self._spent) >= SPENT_MAX:
            return NotJoined(f"{SPENT_MAX} JWTs were used lately; try later")
        more: dict[str, Any] = {"invitation": "", "subject": token.subject}
        if one_time:
            more |= {"token": token.id.hex(), "token_until": token.until}
        return self._admit(request, listed, now, tag=token.tag, lifetime=lifetime, more=more)

    def _barred(self, key: bytes, listed: Mapping[bytes, str]) -> NotJoined | None:
        """Returns why a key may not join, whatever it can show; None if it may."""
        if key in listed:
            return NotJoined(f"this key is that of the configured peer {listed[key]} already")
        if key in self.revoked:
            return NotJoined(
                "this key is revoked; the endpoint's administrator can have it forgotten"
            )
        return None

    def _admit(
        self,
        request: JoinRequest | JwtRequest,
        listed: Mapping[bytes, str],
        now: float,
        *,
        tag: str,
        lifetime: int,
        more: Entry,
    ) -> Joined | NotJoined:
        """Makes a host a member that may be one, or says why it is none."""
        known = self._by_key.get(request.sender)
        if known is None and len(self.members) >= MEMBERS_MAX:
            return NotJoined(f"{MEMBERS_MAX} hosts have joined already")
        if not _NAME.fullmatch(request.name):
            return NotJoined("a name is 1 to 64 letters, digits, dots, dashes or underscores")
        name = known or self._free_name(request.name, set(listed.values()))
        self._happen(
            {
                "entry": "joined",
                "name": name,
                "key": public_key_text(request.sender),
                "tag": tag,
                "until": int(now) + lifetime if lifetime else 0,
                "at": int(now),
                **more,
            }
        )
        return self._answer(self.members[name])

    def renew(
        self, name: str, key: bytes, listed: Collection[bytes], now: float
    ) -> Joined | NotJoined:
        """Gives a member another key; the one that it had stays good for a while."""
        member = self.members[name]
        if member.key == key:
            return self._answer(member)  # its answer was lost
        if key in listed or key in self._by_key or key in self.revoked:
            return NotJoined("the new key is that of another peer, or was used before")
        old_until = int(now) + OLD_KEY_LIFETIME
        self._happen(
            {
                "entry": "renewed",
                "name": name,
                "key": public_key_text(key),
                "old_until": old_until,
            }
        )
        return self._answer(self.members[name])

    def seen(self, name: str, now: float) -> None:
        """Remembers that a member has a link."""
        member = self.members.get(name)
        if member is None:
            return
        if now - member.seen_at >= SEEN_PERIOD:
            self._happen({"entry": "seen", "name": name, "at": int(now)})
        else:
            self.members[name] = replace(member, seen_at=int(now))

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
                del self._by_key[member.old_key]
                self.members[member.name] = replace(member, old_key=b"", old_until=0)
                changed = True
        return changed

    def _answer(self, member: Member) -> Joined:
        enrolment = enrolment_for(self._identity, member.key, member.until)
        return Joined(member.name, member.tag, member.until, enrolment)

    def _free_name(self, wanted: str, listed: Collection[str]) -> str:
        name, number = wanted, 1
        while name in self.members or name in listed:
            number += 1
            ending = f"-{number}"
            name = wanted[: _NAME_MAX - len(ending)] + ending
        return name

    # --- what has happened ----------------------------------------------------------------------

    def _happen(self, entry: Entry) -> None:
        self.record(entry)  # first: what cannot be written down has not happened
        self.replay(entry)

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
                newer = replace(
                    member,
                    key=parse_public_key(entry["key"]),
                    old_key=member.key,
                    old_until=int(entry["old_until"]),
                )
                self._enter(newer)
                self._by_key[newer.old_key] = newer.name
            case "spent":
                self._spent[bytes.fromhex(entry["token"])] = int(entry["until"])
            case "seen":
                member = self.members[entry["name"]]
                self.members[member.name] = replace(member, seen_at=int(entry["at"]))
            case "revoked":
                member = self.members[entry["name"]]
                for key in member.all_keys():
                    self.revoked[key] = Revoked(key, member.name, int(entry["at"]))
                self._forget(member)
            case "revoked-key":
                key = parse_public_key(entry["key"])
                self.revoked[key] = Revoked(key, entry["name"], int(entry["at"]))
            case "forgotten":
                del self.revoked[parse_public_key(entry["key"])]
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
        for name in {member.name, self._by_key.get(member.key, member.name)}:
            # One whose time was over had its name, or its key, when it came.
            if name in self.members:
                self._forget(self.members[name])
        self._enter(member)

    def _enter(self, member: Member) -> None:
        self.members[member.name] = member
        self._by_key[member.key] = member.name

    def _forget(self, member: Member) -> None:
        del self.members[member.name]
        for key in (member.key, member.old_key):
            if self._by_key.get(key) == member.name:
                del self._by_key[key]

    def entries(self) -> Iterator[Entry]:
        """Yields entries that make the present state, for a file that is written anew."""
        for member in self.members.values():
            yield from _entries_of(member)
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


def _entries_of(member: Member) -> Iterator[Entry]:
    yield {
        "entry": "joined",
        "name": member.name,
        "key": public_key_text(member.old_key or member.key),
        "tag": member.tag,
        "until": member.until,
        "invitation": member.invitation,
        "at": member.joined_at,
        # When a token may come again is in an entry of its own: its host may be gone by then.
        **({"subject": member.subject} if member.subject else {}),
        **({"token": member.token} if member.token else {}),
    }
    if member.old_key:
        yield {
            "entry": "renewed",
            "name": member.name,
            "key": public_key_text(member.key),
            "old_until": member.old_until,
        }
    if member.seen_at:
        yield {"entry": "seen", "name": member.name, "at": member.seen_at}
