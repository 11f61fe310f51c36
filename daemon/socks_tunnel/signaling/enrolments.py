"""Who may join an endpoint, and who may stay. No files, no clock: `now` is Unix time in seconds.

Decisions are remembered as described in :mod:`socks_tunnel.signaling.member_list`.
"""

import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from socks_tunnel.signaling.identity import PrivateIdentity, public_key_text
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
from socks_tunnel.signaling.member_list import (
    REPLACED_MAX,
    Entry,
    Invitation,
    Member,
    MemberList,
)

if TYPE_CHECKING:  # it imports PyJWT, which is loaded only where such tokens are accepted
    from socks_tunnel.signaling.jwt_tokens import Accepted

MEMBERS_MAX: Final = 16_384
"""Hosts that may have joined one endpoint."""

INVITATIONS_MAX: Final = 1024
"""Invitations that may be open at a time."""

USES_MAX: Final = 100_000
"""Hosts that may join with one invitation."""

SPENT_MAX: Final = 65_536
"""Tokens of an identity provider that are remembered, so that each is used only once."""

REVOKED_MAX: Final = 65_536
"""Keys that may be revoked at a time. Only an administrator adds or removes one."""

REPLACED_ALL_MAX: Final = 262_144
"""Replaced keys that are remembered of all members together."""

SEEN_PERIOD: Final = 3600.0
"""Seconds between two records of when a member was last seen."""

OLD_KEY_LIFETIME: Final = 24 * 3600
"""Seconds for which a key is still accepted after another one has replaced it."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME_MAX: Final = 64


class Enrolments(MemberList):
    """Invitations and members of one endpoint. `record` writes an entry down."""

    def __init__(self, identity: PrivateIdentity, record: Callable[[Entry], None]) -> None:
        super().__init__(record)
        self._identity = identity

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

    def begin_epoch(self, now: float) -> int:
        """Begins a new epoch of a group's list, later than all earlier ones, and returns it.

        The epoch contains the time, so that it is also later than any in a file that was restored.
        """
        self._happen({"entry": "epoch", "epoch": max(self.epoch + 1, int(now))})
        return self.epoch

    def bar(self, name: str, keys: Collection[bytes], now: float) -> None:
        """Revokes the keys of a host that has joined another endpoint.

        Raises :class:`ValueError`.
        """
        if len(self.revoked) + len(keys) > REVOKED_MAX:
            raise ValueError(f"{REVOKED_MAX} keys are revoked; have some forgotten first")
        for key in keys:
            self._happen(
                {
                    "entry": "revoked-key",
                    "name": name,
                    "key": public_key_text(key),
                    "at": int(now),
                }
            )

    def withdraw(self, invitation: str) -> None:
        """Ends an invitation, named by its id in hexadecimal. Raises :class:`KeyError`."""
        if invitation not in {each.hex() for each in self.invitations}:
            raise KeyError(invitation)
        self._happen({"entry": "withdrawn", "id": invitation})

    def revoke(self, name: str, now: float) -> Invitation | None:
        """Ends a member's enrolment; its keys cannot join again until they are forgotten.

        Returns the invitation with which it had joined, if others can still use it. Raises
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
        """Lets a revoked key join again, or all keys of a host by its name. Returns those keys.

        Raises :class:`KeyError` if there are no such keys.
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

    # --- what hosts do --------------------------------------------------------------------------

    def join(
        self, request: JoinRequest, listed: Mapping[bytes, str], now: float
    ) -> Joined | NotJoined | None:
        """Decides about a request. Returns None if its proof is wrong, and then it gets no answer.

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
        """Decides about a request whose token of an identity provider was accepted.

        `lifetime` is the number of seconds that the host may stay; 0: no limit.
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
        """Returns why a key may not join with any token; None if it may."""
        if key in listed:
            return NotJoined(f"this key is that of the configured peer {listed[key]} already")
        if key in self.revoked:
            return NotJoined(
                "this key is revoked; the endpoint's administrator can have it forgotten"
            )
        name = self._by_key.get(key)
        if key in self._replaced or (name is not None and self.members[name].key != key):
            # It may have been stolen. Its host has a newer one, or makes one.
            return NotJoined("this key was replaced by another one; join with that, or a new one")
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
        """Makes a host a member, or returns why it cannot be one."""
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
        self, old: bytes, key: bytes, listed: Collection[bytes], now: float
    ) -> Joined | NotJoined | None:
        """Replaces the key `old` of a member. `old` is still accepted for a while.

        Returns None if `old` is not the key of a member.
        """
        name = self._by_key.get(old)
        if name is None:
            return None
        member = self.members[name]
        if member.key == key:
            return self._answer(member)  # its answer was lost
        if member.key != old:
            # A key may be replaced because it was stolen. The thief must not be able to replace it
            # again.
            return NotJoined("the old key was replaced already; the one in its place can be")
        if any(key in those for those in (listed, self._by_key, self._replaced, self.revoked)):
            return NotJoined("the new key is that of another peer, or was used before")
        if len(member.past()) >= REPLACED_MAX or len(self._replaced) >= REPLACED_ALL_MAX:
            # Each of them has an enrolment that the rendezvous service must know to be void.
            return NotJoined(
                "too many keys were replaced; have this host revoked, and join with a new key"
            )
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
        """Records that a member has a link."""
        member = self.members.get(name)
        if member is None:
            return
        if now - member.seen_at >= SEEN_PERIOD:
            self._happen({"entry": "seen", "name": name, "at": int(now)})
        else:
            self.members[name] = replace(member, seen_at=int(now))

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
