"""Who has joined an endpoint, and who still may."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from socks_tunnel.signaling import enrolments as module
from socks_tunnel.signaling import joining
from socks_tunnel.signaling.enrolments import Enrolments
from socks_tunnel.signaling.identity import PrivateIdentity, public_key_text
from socks_tunnel.signaling.joining import Joined, NotJoined, Token
from unit.signaling.office import ENDPOINT, HOSTS, NOW, Office, accepted, join_by_jwt, jwt_request


@pytest.fixture
def office() -> Office:
    return Office()


def test_an_invitation_is_for_so_many_hosts(office: Office) -> None:
    token = office.invite("engineering", uses=2)
    joined = office.join(token)
    assert isinstance(joined, Joined)
    assert (joined.name, joined.tag, joined.until) == ("laptop", "engineering", 0)
    assert joining.open_enrolment(joined.enrolment, HOSTS[0].public, NOW).by == ENDPOINT.public
    assert office.join(token) == joined, "its answer was lost"
    assert isinstance(office.join(token, HOSTS[1], "desktop"), Joined)
    assert office.reason(token, HOSTS[2]) == "the invitation has been used up"
    assert set(office.enrolments.members) == {"laptop", "desktop"}


def test_who_does_not_know_the_secret_learns_nothing(office: Office) -> None:
    token = office.invite()
    assert office.join(Token(token.endpoint, token.id, bytes(16))) is None
    assert office.join(Token(token.endpoint, bytes(8), token.secret)) is None
    office.enrolments.withdraw(token.id.hex())
    assert office.join(token) is None
    with pytest.raises(KeyError):
        office.enrolments.withdraw(token.id.hex())


def test_an_invitation_ends(office: Office) -> None:
    token = office.invite(seconds=100)
    office.now += 100
    assert office.join(token) is None
    assert office.enrolments.invitations == {}


def test_a_member_stays_for_its_lifetime(office: Office) -> None:
    assert isinstance(office.join(office.invite(lifetime=50)), Joined)
    office.now += 49
    assert not office.enrolments.expire(office.now)
    office.now += 1
    assert office.enrolments.expire(office.now)
    assert office.enrolments.members == {}
    assert not office.enrolments.expire(office.now)


def test_two_hosts_never_have_one_name(office: Office) -> None:
    token = office.invite(uses=10)
    long = "n" * 64
    names = []
    for host, name in zip(HOSTS, ["laptop", "laptop", long, long], strict=True):
        joined = office.join(token, host, name, {bytes(32): "laptop-2"})
        assert isinstance(joined, Joined)
        names.append(joined.name)
    assert names == ["laptop", "laptop-3", long, "n" * 62 + "-2"]


def test_what_cannot_join(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    token = office.invite()
    listed = {HOSTS[0].public: "office"}
    assert "configured peer office" in office.reason(token, listed=listed)
    assert office.reason(token, name="a b").startswith("a name is")
    monkeypatch.setattr(module, "MEMBERS_MAX", 0)
    assert office.reason(token) == "0 hosts have joined already"


def test_invitations_that_are_none(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    for uses in (0, -1, module.USES_MAX + 1):
        with pytest.raises(ValueError, match="1 to 100000 hosts"):
            office.invite(uses=uses)
    monkeypatch.setattr(module, "INVITATIONS_MAX", 1)
    office.invite(seconds=10)
    with pytest.raises(ValueError, match="1 invitations are open"):
        office.invite()
    office.now += 10
    office.invite()


REVOKED = "this key is revoked; the endpoint's administrator can have it forgotten"


def test_a_revoked_key_cannot_join_again_by_the_same_request_or_another(office: Office) -> None:
    token = office.invite("a", uses=3)
    request = office.request(token, HOSTS[0], "laptop")
    assert isinstance(office.enrolments.join(request, {}, office.now), Joined)
    invitation = office.enrolments.revoke("laptop", office.now)
    assert invitation is not None
    assert (invitation.id, invitation.uses) == (token.id, 2)
    assert office.enrolments.members == {}
    with pytest.raises(KeyError):
        office.enrolments.revoke("laptop", office.now)
    for enrolments in (office.enrolments, office.again(), office.written_anew()):
        assert enrolments.join(request, {}, office.now) == NotJoined(REVOKED)
        other = office.request(office.invite("b"), HOSTS[0], "other")
        enrolments.replay(office.entries[-1])
        assert enrolments.join(other, {}, office.now) == NotJoined(REVOKED)
        assert enrolments.members == {}
    assert office.enrolments.invitations[token.id].uses == 2


def test_both_keys_of_a_revoked_member_are_revoked_and_neither_can_be_renewed_to(
    office: Office,
) -> None:
    token = office.invite(uses=4)
    office.join(token)
    office.renew("laptop", HOSTS[1].public, (), office.now)
    office.enrolments.revoke("laptop", office.now)
    for host in HOSTS[:2]:
        assert office.reason(token, host) == REVOKED
        assert office.enrolments.name_of(host.public) is None, "it can renew nothing"
    assert isinstance(office.join(token, HOSTS[2], "other"), Joined)
    renewed = office.renew("other", HOSTS[0].public, (), office.now)
    assert isinstance(renewed, NotJoined)


def test_a_revoked_key_may_join_again_once_it_is_forgotten(office: Office) -> None:
    token = office.invite(uses=9)
    for host, name in zip(HOSTS, "abcd", strict=True):
        office.join(token, host, name)
        office.enrolments.revoke(name, office.now)
    assert office.enrolments.forget("a") == [HOSTS[0].public]
    key = public_key_text(HOSTS[1].public)
    assert office.enrolments.forget(key) == [HOSTS[1].public]
    for unknown in ("a", key, "", "nobody"):
        with pytest.raises(KeyError):
            office.enrolments.forget(unknown)
    for enrolments in (office.again(), office.written_anew(), office.enrolments):
        assert list(enrolments.revoked) == [HOSTS[2].public, HOSTS[3].public]
    assert isinstance(office.join(token, HOSTS[0], "a"), Joined)
    assert office.reason(token, HOSTS[2]) == REVOKED


def test_so_many_keys_are_revoked_and_none_is_forgotten_for_another(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REVOKED_MAX", 1)
    token = office.invite(uses=9)
    for host, name in zip(HOSTS, "abcd", strict=True):
        office.join(token, host, name)
    office.enrolments.revoke("a", office.now)
    with pytest.raises(ValueError, match="1 keys are revoked; have some forgotten first"):
        office.enrolments.revoke("b", office.now)
    assert set(office.enrolments.members) == {"b", "c", "d"}
    office.enrolments.forget("a")
    office.enrolments.revoke("b", office.now)


def test_an_invitation_that_nobody_can_join_by_is_not_told_of(office: Office) -> None:
    for seconds in (100, 10):
        office.join(office.invite(uses=1 if seconds == 100 else 5, seconds=seconds))
        office.now += 50
        assert office.enrolments.revoke("laptop", office.now) is None
        office.enrolments.forget("laptop")


def test_another_invitation_changes_the_tag_and_not_the_name(office: Office) -> None:
    office.join(office.invite("a"))
    joined = office.join(office.invite("b"), name="other")
    assert isinstance(joined, Joined)
    assert (joined.name, joined.tag) == ("laptop", "b")
    assert len(office.enrolments.members) == 1


def test_two_keys_are_good_for_a_while(office: Office) -> None:
    office.join(office.invite())
    old, new = HOSTS[0].public, HOSTS[1].public
    renewed = office.renew("laptop", new, (), office.now)
    assert isinstance(renewed, Joined)
    assert joining.open_enrolment(renewed.enrolment, new, NOW).by == ENDPOINT.public
    assert office.renew("laptop", new, (), office.now) == renewed
    assert office.enrolments.members["laptop"].keys(office.now) == [new, old]
    assert isinstance(office.renew("laptop", old, (), office.now), NotJoined)
    assert isinstance(office.renew("laptop", HOSTS[2].public, {HOSTS[2].public}, 0), NotJoined)
    office.now += module.OLD_KEY_LIFETIME
    assert office.enrolments.members["laptop"].keys(office.now) == [new]
    assert office.enrolments.expire(office.now)
    assert office.again().members == office.enrolments.members


def test_a_key_that_was_replaced_replaces_none(office: Office) -> None:
    """It may have been replaced because it was stolen, and is good for a day."""
    office.join(office.invite())
    old, new, thief = (host.public for host in HOSTS[:3])
    renewed = office.renew("laptop", new, (), office.now)
    refused = office.enrolments.renew(old, thief, (), office.now)
    assert refused == NotJoined("the old key was replaced already; the one in its place can be")
    assert office.enrolments.renew(old, new, (), office.now) == renewed, "its answer was lost"
    assert office.enrolments.members["laptop"].all_keys() == [new, old]
    assert office.enrolments.renew(thief, old, (), office.now) is None
    assert isinstance(office.enrolments.renew(new, thief, (), office.now), Joined)


def test_when_a_member_was_seen_is_written_down_now_and_then(office: Office) -> None:
    office.enrolments.seen("nobody", NOW)
    office.join(office.invite())
    for seconds in (0, 1, module.SEEN_PERIOD - 1):
        office.enrolments.seen("laptop", NOW + seconds)
    assert office.enrolments.members["laptop"].seen_at == NOW + module.SEEN_PERIOD - 1
    assert [entry["entry"] for entry in office.entries].count("seen") == 1


def test_what_cannot_be_written_down_has_not_happened(office: Office) -> None:
    token = office.invite()

    def full(_: object) -> None:
        raise OSError("the disk is full")

    office.enrolments.record = full
    with pytest.raises(OSError, match="full"):
        office.join(token)
    assert office.enrolments.members == {}
    assert office.enrolments.invitations[token.id].uses == 1


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"entry": "new"},
        {"entry": "joined", "name": "a"},
        {"entry": "revoked", "name": "a"},
        {"entry": "revoked-key", "name": "a", "key": "x", "at": 1},
        {"entry": "forgotten", "key": "no key"},
        {"entry": "invited", "id": "xyz"},
        {"entry": "seen", "name": "a", "at": []},
        {"entry": "withdrawn", "id": 5},
    ],
)
def test_entries_that_make_no_sense(office: Office, entry: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Error: "):
        office.enrolments.replay(entry)


class Lives(RuleBasedStateMachine):
    """Whatever happens, what was written down tells the same as what is known."""

    def __init__(self) -> None:
        super().__init__()
        self.office = Office()
        self.tokens: list[Token] = []

    @rule(uses=st.integers(1, 3), seconds=st.integers(1, 300), lifetime=st.integers(0, 200))
    def invite(self, uses: int, seconds: int, lifetime: int) -> None:
        self.tokens.append(self.office.invite("t", uses, seconds, lifetime))

    @rule(token=st.integers(0, 5), host=st.sampled_from(HOSTS), name=st.sampled_from("abc"))
    def join(self, token: int, host: PrivateIdentity, name: str) -> None:
        if token < len(self.tokens):
            self.office.join(self.tokens[token], host, name)

    @rule(host=st.sampled_from(HOSTS), index=st.integers(0, 3))
    def renew(self, host: PrivateIdentity, index: int) -> None:
        names = sorted(self.office.enrolments.members)
        if index < len(names):
            self.office.renew(names[index], host.public, (), self.office.now)

    @rule(index=st.integers(0, 3))
    def revoke(self, index: int) -> None:
        names = sorted(self.office.enrolments.members)
        if index < len(names):
            self.office.enrolments.revoke(names[index], self.office.now)

    @rule(host=st.sampled_from(HOSTS))
    def forget(self, host: PrivateIdentity) -> None:
        if host.public in self.office.enrolments.revoked:
            self.office.enrolments.forget(public_key_text(host.public))

    @rule(seconds=st.sampled_from([1, 50, 200, module.OLD_KEY_LIFETIME]))
    def wait(self, seconds: int) -> None:
        self.office.now += seconds
        self.office.enrolments.expire(self.office.now)

    @invariant()
    def each_key_is_one_members(self) -> None:
        members = self.office.enrolments.members.values()
        keys = [key for member in members for key in member.keys(self.office.now)]
        assert len(keys) == len(set(keys))
        assert self.office.enrolments.revoked.keys().isdisjoint(keys)

    @invariant()
    def a_restart_knows_the_same(self) -> None:
        known = self.office.enrolments
        again = self.office.again()
        assert again.members == known.members
        assert again.invitations == known.invitations
        assert again.revoked == known.revoked
        anew = self.office.written_anew()
        assert anew.revoked == known.revoked
        assert anew.members == known.members
        assert anew.invitations == known.invitations


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# --- tokens of an identity provider -------------------------------------------------------------


def test_a_jwt_is_good_for_one_key() -> None:
    office = Office()
    first = join_by_jwt(office, accepted())
    assert isinstance(first, Joined)
    assert (first.name, first.tag) == ("laptop", "staff")
    assert join_by_jwt(office, accepted()) == first, "its answer was lost"
    other = join_by_jwt(office, accepted(), HOSTS[1])
    assert other == NotJoined("the JWT was used already; get a fresh one")
    member = office.enrolments.members["laptop"]
    assert (member.subject, member.invitation) == ("alice", "")
    assert len(office.entries) == 1


def test_a_used_jwt_is_remembered_after_its_host_is_gone_and_after_a_restart() -> None:
    office = Office()
    join_by_jwt(office, accepted())
    office.enrolments.revoke("laptop", office.now)
    assert join_by_jwt(office, accepted()) == NotJoined(REVOKED)
    assert join_by_jwt(office, accepted(b"fresh")) == NotJoined(REVOKED)
    office.enrolments.forget("laptop")
    assert isinstance(join_by_jwt(office, accepted()), NotJoined)
    again = office.again()
    decided = again.join_by_jwt(
        jwt_request(HOSTS[0]), accepted(), {}, NOW, lifetime=0, one_time=True
    )
    assert isinstance(decided, NotJoined)
    # And after the file was written anew.
    rewritten = Enrolments(ENDPOINT, lambda _: None)
    for entry in again.entries():
        rewritten.replay(entry)
    decided = rewritten.join_by_jwt(
        jwt_request(HOSTS[0]), accepted(), {}, NOW, lifetime=0, one_time=True
    )
    assert isinstance(decided, NotJoined)
    office.now += 331
    office.enrolments.expire(office.now)
    assert not list(office.enrolments.entries()), "too old to come again"


def test_members_by_jwt_are_the_same_after_the_file_was_written_anew() -> None:
    office = Office()
    join_by_jwt(office, accepted(b"one"), HOSTS[0])
    join_by_jwt(office, accepted(b"two"), HOSTS[1], lifetime=1000)
    rewritten = Enrolments(ENDPOINT, lambda _: None)
    for entry in office.enrolments.entries():
        rewritten.replay(entry)
    assert rewritten.members == office.enrolments.members == office.again().members
    assert list(rewritten.entries()) == list(office.enrolments.entries())


def test_a_fresh_jwt_prolongs_and_changes_the_tag_under_the_same_name() -> None:
    office = Office()
    join_by_jwt(office, accepted(b"one"), lifetime=100)
    decided = join_by_jwt(office, accepted(b"two", "admins"), name="another", lifetime=500)
    assert isinstance(decided, Joined)
    assert (decided.name, decided.tag, decided.until) == ("laptop", "admins", int(NOW) + 500)
    office.now += 501
    office.enrolments.expire(office.now)
    assert not office.enrolments.members


def test_a_jwt_for_many_hosts() -> None:
    office = Office()
    names = []
    for host in HOSTS:
        decided = join_by_jwt(office, accepted(), host, one_time=False)
        assert isinstance(decided, Joined)
        names.append(decided.name)
    assert names == ["laptop", "laptop-2", "laptop-3", "laptop-4"]


def test_so_many_tokens_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPENT_MAX", 2)
    office = Office()
    for number in range(2):
        assert isinstance(join_by_jwt(office, accepted(b"%d" % number)), Joined)
    assert join_by_jwt(office, accepted(b"2")) == NotJoined("2 JWTs were used lately; try later")
    office.now += 331
    assert isinstance(join_by_jwt(office, accepted(b"2", seconds=1000)), Joined)


def test_what_holds_for_tokens_of_invitations_too(monkeypatch: pytest.MonkeyPatch) -> None:
    office = Office()
    listed = {HOSTS[0].public: "office"}
    decided = join_by_jwt(office, accepted(), listed=listed)
    assert decided == NotJoined("this key is that of the configured peer office already")
    decided = join_by_jwt(office, accepted(), name="a b")
    assert isinstance(decided, NotJoined)
    assert isinstance(join_by_jwt(office, accepted()), Joined), "a refused one is not used up"
    monkeypatch.setattr(module, "MEMBERS_MAX", 1)
    decided = join_by_jwt(office, accepted(b"other"), HOSTS[1])
    assert decided == NotJoined("1 hosts have joined already")
