"""The list of members that several endpoints share."""

from dataclasses import replace
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from socks_tunnel.signaling import group_list as module
from socks_tunnel.signaling import joining
from socks_tunnel.signaling.enrolments import Enrolments
from socks_tunnel.signaling.group_list import Journal, ListChanged, ListRequest, Portion
from socks_tunnel.signaling.identity import PrivateIdentity, public_key_text
from socks_tunnel.signaling.joining import Joined, JoinRejected, JoinRequest, seal
from socks_tunnel.signaling.joining_jwt import SUITE

OWNER, OTHER, STRANGER = (PrivateIdentity.generate() for _ in range(3))
ENDPOINTS = {OWNER.public: "a", OTHER.public: "b"}
NOW = 1_700_000_000.0


class Office:
    """The owner of a list."""

    def __init__(self, enrolments: Enrolments | None = None) -> None:
        self.enrolments = enrolments or Enrolments(OWNER, lambda _: None)
        epoch = self.enrolments.begin_epoch(NOW)
        self.enrolments.journal = self.journal = Journal(self.enrolments, epoch)

    def join(self, name: str, host: PrivateIdentity | None = None) -> PrivateIdentity:
        host = host or PrivateIdentity.generate()
        token = self.enrolments.invite("staff", 1, int(NOW) + 100, 0, NOW)
        sent, _ = joining.new_request(host, token, name, NOW)
        request = joining.open_request(sent, OWNER.public, NOW)
        assert isinstance(request, JoinRequest)
        assert isinstance(self.enrolments.join(request, {}, NOW), Joined)
        return host


class Copy:
    """An endpoint that has a copy, and asks as long as there is more."""

    def __init__(self) -> None:
        self.version = module.NO_VERSION
        self.list = Enrolments(OTHER, lambda _: None)
        self.answers: list[Portion] = []

    def ask(self, journal: Journal) -> None:
        while True:
            portion = journal.since(self.version)
            self.answers.append(portion)
            if portion.reset:
                self.list = Enrolments(OTHER, lambda _: None)
            for entry in portion.entries:
                self.list.replay(entry)
            self.version = portion.version
            if not portion.more:
                return


def same(copy: Copy, office: Office) -> bool:
    theirs = {name: replace(m, token="") for name, m in office.enrolments.members.items()}
    return copy.list.members == theirs and copy.list.revoked == office.enrolments.revoked


def test_a_copy_follows_by_what_has_changed() -> None:
    office, copy = Office(), Copy()
    office.join("one")
    copy.ask(office.journal)
    assert same(copy, office)
    two = office.join("two")
    office.enrolments.revoke("one", NOW)
    office.enrolments.renew(two.public, PrivateIdentity.generate().public, (), NOW)
    copy.ask(office.journal)
    assert same(copy, office)
    assert len(copy.list.revoked) == 1
    assert len(copy.list.members["two"].keys(NOW)) == 2
    assert not copy.answers[-1].reset
    office.enrolments.forget("one")
    copy.ask(office.journal)
    assert same(copy, office)
    copy.ask(office.journal)
    assert copy.answers[-1].entries == ()


def test_a_long_list_comes_in_parts_that_fit() -> None:
    office, copy = Office(), Copy()
    for number in range(900):
        office.join(f"host-{number}")
    copy.ask(office.journal)
    assert same(copy, office)
    assert len(copy.answers) > 2
    assert [each.reset for each in copy.answers] == [True] + [False] * (len(copy.answers) - 1)
    _, request = module.new_request(OTHER, OWNER.public, "g", module.NO_VERSION, NOW)
    for each in copy.answers:
        sent = module.answer_to(OWNER, request, each)
        assert len(sent) <= module.ANSWER_MAX
        got = module.open_answer(sent, request)
        assert replace(got, entries=()) == replace(each, entries=())
        assert [e["name"] for e in got.entries] == [e["name"] for e in each.entries]


def test_after_a_restart_of_the_owner_the_whole_list_comes_again() -> None:
    office, copy = Office(), Copy()
    office.join("one")
    office.join("two")
    copy.ask(office.journal)
    before = copy.version
    again = Enrolments(OWNER, lambda _: None)
    for entry in office.enrolments.entries():
        again.replay(entry)
    restarted = Office(again)
    restarted.enrolments.revoke("one", NOW)
    assert restarted.journal.version > before
    copy.ask(restarted.journal)
    assert copy.answers[-1].reset
    assert same(copy, restarted)


def test_a_restored_file_begins_a_later_epoch() -> None:
    enrolments = Enrolments(OWNER, lambda _: None)
    assert enrolments.begin_epoch(NOW) == int(NOW)
    assert enrolments.begin_epoch(NOW - 1000) == int(NOW) + 1, "the clock was set back"
    assert Enrolments(OWNER, lambda _: None).begin_epoch(NOW + 5) == int(NOW) + 5


def test_what_is_gone_is_remembered_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GONE_MAX", 3)
    office, late, current = Office(), Copy(), Copy()
    office.join("stays")
    late.ask(office.journal)
    for number in range(20):
        host = office.join(f"host-{number}")
        office.enrolments.revoke(f"host-{number}", NOW)
        current.ask(office.journal)
        office.enrolments.forget(public_key_text(host.public))
        current.ask(office.journal)
        assert same(current, office)
    assert len(office.journal._subjects) <= 1 + 3
    late.ask(office.journal)
    assert late.answers[-1].reset or late.answers[-2].reset
    assert same(late, office)


# --- messages -------------------------------------------------------------------------------------


def sealed_for(asked: ListRequest, packed: bytes) -> bytes:
    """Returns what an owner puts into its answer, with any bytes for the entries."""
    box = X25519PublicKey.from_public_bytes(asked.box)
    info = b"socks-tunnel members\0" + asked.sender + asked.to + asked.nonce
    sealed: bytes = SUITE.encrypt(packed, box, info)
    return sealed


def request() -> tuple[bytes, ListRequest]:
    return module.new_request(OTHER, OWNER.public, "g", (5, 6), NOW)


def opened(data: bytes, *, group: str = "g", now: float = NOW) -> Any:
    return module.open_request(data, OWNER.public, group, ENDPOINTS, now)


def test_requests_come_as_they_went() -> None:
    sent, asked = request()
    assert opened(sent) == asked
    sent, change = module.new_change(OTHER, OWNER.public, "g", NOW)
    assert opened(sent) == change
    module.check_noted(module.noted(OWNER, change), change)


def test_another_kind_of_request_is_somebody_elses() -> None:
    token = joining.Token(OWNER.public, bytes(8), bytes(16))
    sent, _ = joining.new_request(OTHER, token, "host", NOW)
    assert opened(sent) is None
    assert opened(b"garbage") is None


def test_who_is_not_of_the_group_gets_nothing() -> None:
    sent, _ = module.new_request(STRANGER, OWNER.public, "g", (0, 0), NOW)
    for refused in (
        lambda: opened(sent),
        lambda: opened(request()[0], group="other"),
        lambda: module.open_request(request()[0], OTHER.public, "g", ENDPOINTS, NOW),
        lambda: opened(request()[0], now=NOW + 61),
        lambda: opened(request()[0], now=NOW - 1000),
    ):
        with pytest.raises(JoinRejected):
            refused()


def test_a_request_that_another_has_signed_is_refused() -> None:
    outer = msgpack.unpackb(request()[0])
    outer["signature"] = STRANGER.sign(outer["body"])
    with pytest.raises(JoinRejected, match="signature"):
        opened(msgpack.packb(outer))


def test_an_answer_is_good_for_one_request_and_from_the_owner_alone() -> None:
    _, asked = request()
    portion = Portion((5, 7), False, False, ({"entry": "left", "name": "one"},))
    good = module.answer_to(OWNER, asked, portion)
    assert module.open_answer(good, asked) == portion
    for other in (
        replace(asked, nonce=bytes(16)),
        replace(asked, opener=X25519PrivateKey.generate()),
        replace(asked, sender=STRANGER.public),
        replace(asked, group="other"),
        replace(asked, to=STRANGER.public),
    ):
        with pytest.raises(JoinRejected):
            module.open_answer(good, other)
    with pytest.raises(JoinRejected):
        module.open_answer(module.answer_to(STRANGER, asked, portion), asked)
    change = ListChanged(OTHER.public, OWNER.public, asked.nonce, "g")
    with pytest.raises(JoinRejected):
        module.check_noted(good, change)


def test_whoever_carries_an_answer_cannot_read_it() -> None:
    _, asked = request()
    portion = Portion((5, 7), False, False, ({"entry": "left", "name": "salaries-db"},))
    answer = module.answer_to(OWNER, asked, portion)
    assert b"salaries" not in answer
    again = module.answer_to(OWNER, asked, portion)
    assert (
        msgpack.unpackb(msgpack.unpackb(again)["body"])["sealed"]
        != (msgpack.unpackb(msgpack.unpackb(answer)["body"])["sealed"])
    )
    # Of another request of the same asker, it does not even open with the right key.
    _, other = request()
    body = msgpack.unpackb(msgpack.unpackb(answer)["body"])
    moved = seal(OWNER, {**body, "in_reply_to": other.nonce})
    with pytest.raises(JoinRejected, match="another request"):
        module.open_answer(moved, replace(other, opener=asked.opener))


def test_a_key_to_which_nothing_can_be_encrypted_is_refused() -> None:
    _, asked = request()
    with pytest.raises(JoinRejected, match="nothing can be encrypted"):
        module.answer_to(OWNER, replace(asked, box=bytes(32)), Portion((5, 7), False, False, ()))


@pytest.mark.parametrize("packed", [b"", b"\xc1", msgpack.packb({}), b"\x91" * 9 + b"\xc0"])
def test_what_is_no_list_of_entries(packed: bytes) -> None:
    _, asked = request()
    answer = msgpack.unpackb(module.answer_to(OWNER, asked, Portion((5, 7), False, False, ())))
    body = {**msgpack.unpackb(answer["body"]), "sealed": sealed_for(asked, packed)}
    with pytest.raises(JoinRejected):
        module.open_answer(seal(OWNER, body), asked)


@pytest.mark.parametrize(
    "entry",
    [
        5,
        {},
        {"entry": "invited"},
        {"entry": "epoch", "epoch": 9},
        {"entry": "left"},
        {"entry": "left", "name": "a b"},
        {"entry": "left", "name": 5},
        {"entry": "joined", "name": "a"},
        {"entry": "revoked-key", "name": "a", "key": "k", "at": -1},
    ],
)
def test_entries_that_are_none(entry: object) -> None:
    _, asked = request()
    body = {
        "kind": "listed",
        "from": OWNER.public,
        "to": asked.sender,
        "in_reply_to": asked.nonce,
        "group": "g",
        "epoch": 1,
        "number": 1,
        "reset": False,
        "more": False,
    }

    def answer(entry: object) -> bytes:
        return seal(OWNER, {**body, "sealed": sealed_for(asked, msgpack.packb([entry]))})

    with pytest.raises(JoinRejected):
        module.open_answer(answer(entry), asked)
    good = {"entry": "left", "name": "one"}
    assert module.open_answer(answer(good), asked).entries == (good,)
