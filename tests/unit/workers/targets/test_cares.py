"""What c-ares says, in our terms."""

from __future__ import annotations

from ipaddress import ip_address

import pycares
import pytest

from socks_tunnel_workers.targets.cares import ALIASES_MAX, Answer, answer_of

E = pycares.errno


def record(name: str, data: object, ttl: int) -> pycares.DNSRecord:
    return pycares.DNSRecord(name, 0, 1, ttl, data)  # type: ignore[arg-type]  # any record's data


def answer(*records: pycares.DNSRecord) -> pycares.DNSResult:
    return pycares.DNSResult(list(records), [], [])


def a(name: str, address: str, ttl: int = 60) -> pycares.DNSRecord:
    return record(name, pycares.ARecordData(address), ttl)


def alias(name: str, target: str, ttl: int = 60) -> pycares.DNSRecord:
    return record(name, pycares.CNAMERecordData(target), ttl)


def test_the_shortest_ttl_of_aliases_and_addresses_holds() -> None:
    result = answer(
        alias("a.test", "B.test.", 7),
        alias("b.test", "c.test", 90),
        a("c.test", "192.0.2.1"),
        a("C.TEST", "192.0.2.2", 30),
        a("c.test", "192.0.2.1"),
    )
    found = answer_of("a.test", result, None)
    assert [str(address) for address in found.addresses] == ["192.0.2.1", "192.0.2.2"]
    assert (found.ttl, found.status, found.problem) == (7, None, "")


def test_records_that_nobody_asked_for_do_not_count() -> None:
    result = answer(a("a.test", "192.0.2.1", 60), a("evil.test", "192.0.2.66", 1))
    assert answer_of("a.test", result, None) == Answer((ip_address("192.0.2.1"),), ttl=60)
    assert answer_of("other.test", result, None).absent


def test_an_alias_that_leads_nowhere_is_no_address() -> None:
    assert answer_of("a.test", answer(alias("a.test", "b.test")), None).absent
    assert answer_of("a.test", answer(), None).absent


def test_aliases_in_a_circle_end() -> None:
    circle = answer(alias("a.test", "b.test"), alias("b.test", "a.test"))
    assert answer_of("a.test", circle, None).absent
    chain = [alias(f"{n}.test", f"{n + 1}.test") for n in range(ALIASES_MAX)]
    last = a(f"{ALIASES_MAX}.test", "192.0.2.1")
    assert answer_of("0.test", answer(*chain, last), None).addresses
    one_more = alias(f"{ALIASES_MAX}.test", f"{ALIASES_MAX + 1}.test")
    last = a(f"{ALIASES_MAX + 1}.test", "192.0.2.1")
    assert answer_of("0.test", answer(*chain, one_more, last), None).absent


def test_ipv6_addresses() -> None:
    six = record("a.test", pycares.AAAARecordData("2001:db8::1"), 9)
    assert answer_of("a.test", answer(six), None).addresses == (ip_address("2001:db8::1"),)


@pytest.mark.parametrize(
    ("status", "absent", "timed_out"),
    [
        (E.ARES_ENOTFOUND, True, False),
        (E.ARES_ENODATA, True, False),
        (E.ARES_ETIMEOUT, False, True),
        (E.ARES_ESERVFAIL, False, False),
        (E.ARES_EREFUSED, False, False),
        (E.ARES_ECONNREFUSED, False, False),
        (E.ARES_EBADRESP, False, False),
        (E.ARES_ENOMEM, False, False),
    ],
)
def test_only_an_answer_says_that_there_is_no_address(
    status: int, absent: bool, timed_out: bool
) -> None:
    found = answer_of("a.test", None, status)
    assert (found.addresses, found.absent, found.timed_out) == ((), absent, timed_out)
    assert found.problem


def test_no_result_and_no_error_is_a_bad_answer() -> None:
    assert answer_of("a.test", None, None) == Answer(status=E.ARES_EBADRESP)


def test_names_of_an_address() -> None:
    name = "1.2.0.192.in-addr.arpa"
    result = answer(
        record(name, pycares.PTRRecordData("A.test."), 9),
        record(name, pycares.PTRRecordData("b.test"), 8),
        record(name, pycares.PTRRecordData("a.test"), 7),
        record(name, pycares.PTRRecordData("not a name"), 1),
    )
    assert answer_of(name, result, None) == Answer(names=("a.test", "b.test"), ttl=7)
