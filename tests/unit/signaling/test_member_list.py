"""Keys of hosts that other keys have taken the place of."""

import pytest

from socks_tunnel.signaling import enrolments as module
from socks_tunnel.signaling.joining import Joined, NotJoined
from unit.signaling.office import HOSTS, NOW, Office, accepted, join_by_jwt


@pytest.fixture
def office() -> Office:
    return Office()


REPLACED = "this key was replaced by another one; join with that, or a new one"


def test_a_key_that_was_replaced_long_ago_is_revoked_with_its_host(office: Office) -> None:
    """Its enrolment is signed, so the rendezvous service would take it for ever."""
    token = office.invite(uses=9)
    office.join(token)
    for host in HOSTS[1:3]:
        office.renew("laptop", host.public, (), office.now)
        office.now += module.OLD_KEY_LIFETIME
        office.enrolments.expire(office.now)
    keys = [host.public for host in HOSTS[:3]]
    for enrolments in (office.again(), office.written_anew(), office.enrolments):
        assert enrolments.members["laptop"].keys(office.now) == keys[2:]
        assert enrolments.replaced() == keys[:2]
    office.enrolments.revoke("laptop", office.now)
    for enrolments in (office.again(), office.written_anew(), office.enrolments):
        assert list(enrolments.revoked) == keys, "the newest last"
        assert enrolments.replaced() == []
    assert office.enrolments.forget("laptop") == keys


def test_a_replaced_key_is_void_also_after_its_host_has_joined_again(office: Office) -> None:
    office.join(office.invite())
    office.renew("laptop", HOSTS[1].public, (), office.now)
    assert isinstance(office.join(office.invite("other"), HOSTS[1]), Joined)
    for enrolments in (office.again(), office.written_anew(), office.enrolments):
        assert enrolments.replaced() == [HOSTS[0].public]
        assert [*enrolments.members] == ["laptop"]


def test_a_replaced_key_neither_joins_nor_takes_the_place_of_another(office: Office) -> None:
    """With an open invitation, a thief could push the key out that had replaced the stolen one."""
    token = office.invite(uses=9, seconds=2 * module.OLD_KEY_LIFETIME)
    office.join(token)
    office.renew("laptop", HOSTS[1].public, (), office.now)
    assert office.reason(token) == REPLACED
    office.now += module.OLD_KEY_LIFETIME
    assert office.reason(token) == REPLACED
    decided = join_by_jwt(office, accepted(seconds=2 * module.OLD_KEY_LIFETIME))
    assert decided == NotJoined(REPLACED)
    assert isinstance(office.renew("laptop", HOSTS[0].public, (), office.now), NotJoined)
    for enrolments in (office.again(), office.enrolments):
        assert [member.key for member in enrolments.members.values()] == [HOSTS[1].public]


def test_a_file_in_which_a_replaced_key_has_joined_again_keeps_both_hosts(office: Office) -> None:
    """Earlier versions let it: the host with the newer key was gone after a restart then.

    A revocation of that host made no sense any more, and was left out.
    """
    token = office.invite(uses=9)
    office.join(token)
    office.renew("laptop", HOSTS[1].public, (), office.now)
    office.entries.append({**office.entries[1], "name": "laptop-2"})
    again = office.again()
    assert {member.name: member.all_keys() for member in again.members.values()} == {
        "laptop": [HOSTS[1].public],
        "laptop-2": [HOSTS[0].public],
    }
    assert again.replaced() == []
    office.entries.append({"entry": "revoked", "name": "laptop", "at": int(NOW)})
    assert list(office.again().revoked) == [HOSTS[1].public]


def test_so_many_keys_are_replaced(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REPLACED_MAX", 2)
    token = office.invite(uses=9)
    office.join(token)
    for host in HOSTS[1:3]:
        assert isinstance(office.renew("laptop", host.public, (), office.now), Joined)
    refused = office.renew("laptop", HOSTS[3].public, (), office.now)
    assert isinstance(refused, NotJoined)
    assert refused.reason.startswith("too many keys were replaced")
    monkeypatch.setattr(module, "REPLACED_MAX", 9)
    monkeypatch.setattr(module, "REPLACED_ALL_MAX", 1)
    refused = office.renew("laptop", HOSTS[3].public, (), office.now)
    assert isinstance(refused, NotJoined)
