"""Who is here, who may talk to whom, and what is passed on."""

from typing import Any, Literal

import pytest

from socks_tunnel.protocol import rendezvous as wire
from socks_tunnel.protocol.rendezvous_load import Load
from socks_tunnel.protocol.rendezvous_revoked import REVOKED_MAX, Revocation
from socks_tunnel.rendezvous import registry
from socks_tunnel.rendezvous.client import OUTBOX_MAX, Client
from socks_tunnel.rendezvous.registry import Refused, Registry

A, B, C = (bytes([number]) * 32 for number in range(3))

Clients = Literal["listed", "enrolled", "any"]


class Hall:
    """A registry, and what became of each client."""

    def __init__(self, *, clients: Clients = "any", **more: Any) -> None:
        self.registry = Registry({A: "a", B: "b"}, clients=clients, **more)
        self.ended: list[tuple[bytes, int]] = []
        self.woken: list[bytes] = []

    def join(
        self, key: bytes, *watched: bytes, now: float = 0, enrolled_by: bytes | None = None
    ) -> Client:
        client = self.registry.join(
            key,
            now,
            enrolled_by=enrolled_by,
            wake=lambda: self.woken.append(key),
            end=lambda code, _: self.ended.append((key, code)),
        )
        self.watch(client, *watched)
        return client

    def watch(self, client: Client, *watched: bytes, reset: bool = True) -> None:
        self.registry.watch(client, wire.Watch(watched, reset))

    @staticmethod
    def got(client: Client) -> list[wire.FromService]:
        frames = []
        while (frame := client.pop()) is not None:
            frames.append(wire.decode_from_service(frame))
        assert client.waiting == 0
        return frames


def test_an_envelope_goes_to_who_watches_its_sender() -> None:
    hall = Hall()
    a, b = hall.join(A, B), hall.join(B, A)
    hall.got(a), hall.got(b)
    hall.registry.envelope(a, B, b"parcel", 0)
    assert hall.got(b) == [wire.FromKey(A, b"parcel")]
    assert hall.got(a) == []
    assert hall.registry.counts["passed"] == 1


def test_to_all_others_a_key_is_absent() -> None:
    hall = Hall()
    a, c = hall.join(A, B), hall.join(C, A)
    hall.registry.envelope(c, A, b"parcel", 0)
    hall.registry.envelope(c, B, b"parcel", 0)
    assert hall.got(c) == [wire.Absent(A, "absent"), wire.Absent(B, "absent")]
    assert hall.got(a) == []


def test_presence_is_told_to_those_who_watch_each_other() -> None:
    hall = Hall()
    a = hall.join(A, B, C)
    b = hall.join(B)
    assert hall.got(a) == hall.got(b) == []
    hall.watch(b, A)
    assert hall.got(a) == [wire.Presence((B,), ())]
    assert hall.got(b) == [wire.Presence((A,), ())]
    hall.registry.leave(b)
    assert hall.got(a) == [wire.Presence((), (B,))]
    hall.registry.leave(b)
    assert hall.got(a) == []


def test_who_stops_watching_is_gone_for_the_other() -> None:
    hall = Hall()
    a, b = hall.join(A, B), hall.join(B, A)
    hall.got(a), hall.got(b)
    hall.watch(b, C)
    assert hall.got(a) == [wire.Presence((), (B,))]
    hall.watch(b, A, reset=False)
    assert hall.got(a) == [wire.Presence((B,), ())]
    assert b.watched == {A, C}


def test_after_a_reset_presence_is_told_again() -> None:
    hall = Hall()
    a, b = hall.join(A, B), hall.join(B, A)
    hall.got(a), hall.got(b)
    hall.watch(a, B)
    assert hall.got(a) == [wire.Presence((B,), ())]
    assert hall.got(b) == []


def test_nobody_watches_himself() -> None:
    hall = Hall()
    a = hall.join(A, A)
    assert hall.got(a) == []


def test_a_newer_connection_takes_the_place_of_the_older() -> None:
    hall = Hall()
    older, b = hall.join(A, B), hall.join(B, A)
    hall.got(b)
    newer = hall.join(A)
    assert hall.ended == [(A, wire.CLOSE_REPLACED)]
    assert hall.got(b) == [wire.Presence((), (A,))]
    hall.registry.leave(older)
    assert hall.registry.get(A) is newer
    assert not older.push(b"frame")


def test_two_hosts_with_one_key_cannot_replace_each_other_for_ever() -> None:
    hall = Hall()
    for _ in range(int(registry.JOINS_BURST)):
        hall.join(A)
    with pytest.raises(Refused, match="too often") as caught:
        hall.join(A)
    assert caught.value.code == wire.CLOSE_TOO_MUCH
    hall.join(A, now=1)


def test_only_listed_keys_where_it_says_so() -> None:
    hall = Hall(clients="listed")
    hall.join(A)
    with pytest.raises(Refused, match="not listed") as caught:
        hall.join(C)
    assert caught.value.code == wire.CLOSE_FORBIDDEN
    assert len(hall.registry) == 1


def test_the_number_of_clients_is_bounded() -> None:
    hall = Hall(clients_max=2)
    hall.join(A)
    hall.join(B)
    with pytest.raises(Refused, match="2 clients already"):
        hall.join(C)
    hall.join(A)  # takes the place of one


@pytest.mark.parametrize(("key", "limit"), [(A, registry.WATCH_MAX), (C, registry.WATCH_MAX_ANY)])
def test_the_number_of_watched_keys_is_bounded(key: bytes, limit: int) -> None:
    hall = Hall()
    client = hall.join(key)
    keys = [number.to_bytes(32, "big") for number in range(limit + 1)]
    hall.watch(client, *keys[:-1])
    hall.watch(client, *keys[1:])  # in place of them
    with pytest.raises(Refused, match=f"more than {limit} keys"):
        hall.watch(client, keys[0], reset=False)
    assert len(client.watched) == limit


def test_envelopes_have_a_rate_and_who_does_not_stop_has_to_go() -> None:
    hall = Hall()
    c, a = hall.join(C, A), hall.join(A, C)
    hall.got(a), hall.got(c)
    for _ in range(int(registry.ENVELOPES_BURST_ANY)):
        hall.registry.envelope(c, A, b"", 0)
    assert len(hall.got(a)) == registry.ENVELOPES_BURST_ANY
    hall.registry.envelope(c, A, b"", 0)
    assert hall.got(c) == [wire.Absent(A, "rate")]
    for _ in range(registry.ANSWERED_TOO_MANY - 1):
        hall.registry.envelope(c, A, b"", 0)
        hall.got(c)
    with pytest.raises(Refused, match="far too many"):
        hall.registry.envelope(c, A, b"", 0)


def test_an_outbox_is_bounded_and_the_sender_is_told() -> None:
    hall = Hall()
    a, b = hall.join(A, B), hall.join(B, A)
    hall.got(a), hall.got(b)
    body = bytes(60_000)
    for _ in range(30):
        hall.registry.envelope(a, B, body, 0)
        assert b.waiting <= OUTBOX_MAX
    answers = hall.got(a)
    assert answers
    assert set(answers) == {wire.Absent(B, "busy")}
    assert len(hall.got(b)) + len(answers) == 30


def test_who_does_not_read_has_to_go() -> None:
    hall = Hall()
    a = hall.join(A)
    hall.join(B, A)
    while a.push(bytes(10)):
        pass
    hall.watch(a, B)
    assert hall.ended == [(A, wire.CLOSE_TOO_MUCH)]
    assert a.waiting == 0
    b = hall.registry.get(B)
    assert b is not None
    while b.push(bytes(10)):
        pass
    with pytest.raises(Refused, match="does not read"):
        hall.registry.envelope(b, C, b"", 0)


def test_a_client_is_woken_once_for_all_that_waits() -> None:
    hall = Hall()
    a, b = hall.join(A, B), hall.join(B, A)
    hall.got(a), hall.got(b)
    hall.woken.clear()
    hall.registry.envelope(a, B, b"1", 0)
    hall.registry.envelope(a, B, b"2", 0)
    assert hall.woken == [B]


def test_drain_and_end() -> None:
    hall = Hall()
    a, b = hall.join(A), hall.join(B)
    hall.registry.drain(7)
    assert hall.got(a) == hall.got(b) == [wire.Drain(7)]
    hall.registry.end_all(wire.CLOSE_GOING_AWAY, "over")
    assert hall.ended == [(A, 1001), (B, 1001)]


def test_keys_that_are_not_listed_any_more_have_to_go() -> None:
    hall = Hall(clients="listed")
    a, b = hall.join(A, B), hall.join(B, A)
    hall.got(a), hall.got(b)
    hall.registry.update({A: "renamed"})
    assert hall.ended == [(B, wire.CLOSE_FORBIDDEN)]
    assert a.name == "renamed"
    assert hall.got(a) == [wire.Presence((), (B,))]
    open_hall = Hall()
    open_hall.join(C)
    open_hall.registry.update({B: "b"})
    assert open_hall.ended == []


def test_who_is_listed_meanwhile_comes_back() -> None:
    """It was told other limits: among them, that nobody asks whose enrolments it has revoked."""
    hall = Hall()
    assert hall.registry.welcome(hall.join(C), bytes(8), 5).revoked == 0
    hall.registry.update({C: "c"})
    assert hall.ended == [(C, registry.CLOSE_NORMAL)]
    assert hall.registry.welcome(hall.join(C), bytes(8), 5).revoked == REVOKED_MAX
    hall.registry.update({C: "renamed"})
    assert len(hall.ended) == 1


def test_what_a_client_is_told_of_its_limits() -> None:
    hall = Hall()
    welcome = hall.registry.welcome(hall.join(C), bytes(8), 5.5)
    assert welcome == wire.Welcome(bytes(8), 5, wire.PARCEL_MAX, 64, 10, load=5)
    assert hall.registry.welcome(hall.join(A), bytes(8), 5.5).watch == registry.WATCH_MAX


# --- hosts that join ------------------------------------------------------------------------------


def takes_guests(hall: Hall, client: Client) -> None:
    hall.registry.watch(client, wire.Watch((), reset=True, guests=True))


def test_a_stranger_reaches_who_takes_guests_and_gets_an_answer() -> None:
    hall = Hall(clients="enrolled")
    a, c = hall.join(A), hall.join(C, A)
    assert c.guest
    hall.registry.envelope(c, A, b"let me in", 0)
    assert hall.got(c) == [wire.Absent(A, "absent")]
    takes_guests(hall, a)
    hall.registry.envelope(c, A, b"let me in", 0)
    assert hall.got(a) == [wire.FromKey(C, b"let me in")]
    hall.registry.envelope(a, C, b"come in", 0)
    assert hall.got(c) == [wire.FromKey(A, b"come in")]
    hall.watch(a)
    hall.registry.envelope(c, A, b"let me in", 0)
    assert hall.got(c) == [wire.Absent(A, "absent")]


def test_a_guest_takes_no_guests_and_sees_nobody() -> None:
    hall = Hall(clients="enrolled")
    a = hall.join(A, B)
    c, d = hall.join(C, A), hall.join(bytes([9]) * 32, C)
    for guest in (c, d):
        takes_guests(hall, guest)
    hall.registry.envelope(c, d.key, b"psst", 0)
    assert hall.got(c) == [wire.Absent(d.key, "absent")]
    assert hall.got(a) == []


def test_strangers_together_have_a_rate() -> None:
    hall = Hall(clients="any")
    a = hall.join(A)
    takes_guests(hall, a)
    strangers = [hall.join(bytes([number]) * 32) for number in range(100, 110)]
    for number in range(registry.GUEST_ENVELOPES_BURST + 10):
        hall.registry.envelope(strangers[number % 10], A, b"x", 0)
    assert len(hall.got(a)) == registry.GUEST_ENVELOPES_BURST
    refused = [frame for each in strangers for frame in hall.got(each)]
    assert refused == [wire.Absent(A, "busy")] * 10
    b = hall.join(B)
    hall.registry.watch(a, wire.Watch((B,), reset=False, guests=True))
    hall.registry.envelope(b, A, b"known", 0)
    assert hall.got(a)[-1] == wire.FromKey(B, b"known")


def test_an_enrolled_key_is_no_guest_as_long_as_who_enrolled_it_is_listed() -> None:
    hall = Hall(clients="enrolled")
    assert not hall.join(C, enrolled_by=A).guest
    assert hall.join(bytes([9]) * 32, enrolled_by=bytes([8]) * 32).guest
    hall.registry.update({B: "b"})
    assert hall.ended == [(C, wire.CLOSE_FORBIDDEN)]
    assert len(hall.registry) == 1


def test_guests_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "GUESTS_MAX", 2)
    hall = Hall(clients="enrolled")
    first = hall.join(bytes([100]) * 32)
    hall.join(bytes([101]) * 32)
    with pytest.raises(Refused, match="2 guests"):
        hall.join(bytes([102]) * 32)
    hall.join(A)
    hall.registry.leave(first)
    hall.join(bytes([102]) * 32)
    hall.registry.update({bytes([102]) * 32: "c"})
    hall.join(bytes([103]) * 32)
    with pytest.raises(Refused, match="2 guests"):
        hall.join(bytes([104]) * 32)
    assert len(hall.registry) == 2


# --- what is dropped ------------------------------------------------------------------------------


def test_parcels_that_wait_for_a_client_that_goes_are_counted() -> None:
    hall = Hall()
    a, b = hall.join(A, B), hall.join(B, A)
    for _ in range(3):
        hall.registry.envelope(a, B, b"parcel", 0)
    hall.registry.leave(b)
    b.finish(wire.CLOSE_LATE, "gone")
    assert hall.registry.counts["passed"] == 3
    assert hall.registry.counts["dropped: client gone"] == 3, "presence is no parcel"
    b.finish(wire.CLOSE_LATE, "gone")
    assert hall.registry.counts["dropped: client gone"] == 3


def test_a_parcel_that_could_not_be_sent_is_counted() -> None:
    hall = Hall()
    a, b = hall.join(A, B), hall.join(B, A)
    hall.got(b)
    hall.registry.envelope(a, B, b"parcel", 0)
    b.lost(b.pop())
    b.lost(wire.encode(wire.Drain(5)))
    b.lost(None)
    assert hall.registry.counts["dropped: not sent"] == 1


# --- load -----------------------------------------------------------------------------------------


def loads(frames: list[wire.FromService]) -> list[tuple[bytes, int]]:
    return [(k, o.flows) for f in frames if isinstance(f, wire.Presence) for k, o in f.loads]


def test_a_load_goes_to_those_that_want_it_and_are_watched() -> None:
    hall = Hall()
    office = hall.join(A, B, C)
    wants, wants_not, stranger = hall.join(B), hall.join(C), hall.join(bytes([9]) * 32)
    for client, asks in ((wants, True), (wants_not, False), (stranger, True)):
        hall.registry.watch(client, wire.Watch((A,), reset=True, loads=asks))
        hall.got(client)
    hall.registry.load(office, Load(5, 1, "1"), 0)
    assert loads(hall.got(wants)) == [(A, 5)]
    assert hall.got(wants_not) == hall.got(stranger) == []


def test_who_comes_later_is_told_the_load_that_was_said_last() -> None:
    hall = Hall()
    office = hall.join(A, B)
    hall.registry.load(office, Load(5, 1, "1"), 0)
    late = hall.join(B)
    hall.got(late)
    hall.registry.watch(late, wire.Watch((A,), reset=True, loads=True))
    assert hall.got(late) == [
        wire.Presence((A,), ()),
        wire.Presence((), (), ((A, Load(5, 1, "1")),)),
    ]


def test_a_load_that_is_said_too_often_is_dropped_and_counted() -> None:
    hall = Hall()
    office, laptop = hall.join(A, B), hall.join(B)
    hall.registry.watch(laptop, wire.Watch((A,), reset=True, loads=True))
    hall.got(laptop)
    for tenth in range(100):
        hall.registry.load(office, Load(tenth, 1, "1"), tenth / 10)
    assert loads(hall.got(laptop)) == [(A, 0), (A, 25), (A, 50), (A, 75)]
    assert hall.registry.counts["dropped: load"] == 96


# --- enrolments that are void ---------------------------------------------------------------------


def test_a_revoked_client_is_ended_and_refused_until_that_is_lifted() -> None:
    hall = Hall(clients="enrolled")
    a = hall.join(A, C)
    hall.join(C, A, enrolled_by=A)
    hall.got(a)
    hall.registry.revocations.tell(a, Revocation(1, True, (C,)))
    assert hall.ended == [(C, wire.CLOSE_FORBIDDEN)]
    assert hall.got(a) == [wire.Presence((), (C,))]
    assert hall.registry.counts["ended: revoked"] == 1
    with pytest.raises(Refused, match="its enrolment is revoked"):
        hall.join(C, enrolled_by=A)
    assert hall.registry.counts["refused: revoked"] == 1
    hall.registry.leave(a)
    with pytest.raises(Refused, match="its enrolment is revoked"):
        hall.join(C, enrolled_by=A)
    hall.registry.revocations.tell(hall.join(A), Revocation(2, False, (), (C,)))
    assert not hall.join(C, enrolled_by=A).guest


def test_an_endpoint_revokes_nothing_but_its_own() -> None:
    hall = Hall(clients="enrolled")
    hall.join(A)
    b, c = hall.join(B), hall.join(C, enrolled_by=A)
    hall.registry.revocations.tell(b, Revocation(1, True, (A, B, C)))
    hall.registry.revocations.tell(c, Revocation(1, True, (A, B)))
    assert hall.ended == []
    assert hall.registry.counts["dropped: revocation"] == 1, "who is not listed enrols nobody"
    hall.join(C, enrolled_by=A)


def test_what_is_revoked_may_still_be_listed() -> None:
    hall = Hall(clients="enrolled")
    a = hall.join(A)
    hall.join(B, enrolled_by=A)
    hall.registry.revocations.tell(a, Revocation(1, True, (B,)))
    hall.join(B, enrolled_by=A)
    assert [code for _, code in hall.ended] == [wire.CLOSE_REPLACED]


def test_who_is_listed_no_more_has_revoked_nothing() -> None:
    hall = Hall(clients="enrolled")
    hall.registry.revocations.tell(hall.join(A), Revocation(1, True, (C,)))
    hall.registry.update({B: "b"})
    hall.registry.update({A: "a", B: "b"})
    assert not hall.join(C, enrolled_by=A).guest


def test_only_who_may_enrol_is_told_that_revocations_are_taken() -> None:
    hall = Hall()
    assert hall.registry.welcome(hall.join(A), bytes(8), 5).revoked == REVOKED_MAX
    assert hall.registry.welcome(hall.join(C), bytes(8), 5).revoked == 0
