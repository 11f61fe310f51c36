"""Members as peers of a configuration, and as rows of a report."""

from collections.abc import Collection, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from socks_tunnel.config.settings import Config, Peer
from socks_tunnel.signaling.identity import public_key_text
from socks_tunnel.signaling.member_list import Member, MemberList, Revoked
from socks_tunnel.supervisor.peers import keys_of


def keys_in(config: Config) -> dict[bytes, str]:
    """Returns the names of the peers of a configuration, by key."""
    return {key: peer.name for peer in config.peers for key in keys_of(peer)}


def why_refused(
    member: Member,
    names: Collection[str],
    policies: Collection[str],
    listed: Mapping[bytes, str],
    now: float,
) -> str | None:
    """Returns why a member cannot be a peer in a configuration; None if it can."""
    if member.name in names:
        return "the configuration has a peer of that name"
    if member.tag and member.tag not in policies:
        return f"there is no [policies.{member.tag}]"
    if not listed.keys().isdisjoint(member.keys(now)):
        return "the configuration has a peer with its key"
    return None


def peer_of(member: Member, now: float) -> Peer:
    """Returns the peer for a member, with the policy of its tag."""
    key, *old = member.keys(now)
    return Peer(
        name=member.name,
        public_key=public_key_text(key),
        old_public_key=public_key_text(old[0]) if old else None,
        url=None,
        tls_ca=None,
        proxy=None,
        rendezvous=None,
        enrolment_file=None,
        policy=member.tag or None,
        weight=1,
    )


def _iso(moment: int) -> str | None:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds") if moment else None


def rows_of(enrolments: MemberList, here: Iterable[Revoked], now: float) -> dict[str, Any]:
    """Returns the rows of `peers` for a list, and for the keys that are revoked only `here`."""
    members = [
        {
            "name": member.name,
            "public_keys": [public_key_text(key) for key in member.keys(now)],
            "tag": member.tag,
            "joined": _iso(member.joined_at),
            "seen": _iso(member.seen_at),
            "until": _iso(member.until),
            "invitation": member.invitation,
            "subject": member.subject,
        }
        for member in enrolments.members.values()
    ]
    invitations = [
        {
            "invitation": each.id.hex(),
            "tag": each.tag,
            "uses_left": each.uses,
            "until": _iso(each.until),
            "lifetime": each.lifetime,
        }
        for each in enrolments.invitations.values()
    ]
    revoked = [
        {"name": each.name, "public_key": public_key_text(each.key), "revoked": _iso(each.at)}
        for each in [*enrolments.revoked.values(), *here]
    ]
    return {"peers": members, "invitations": invitations, "revoked": revoked}
