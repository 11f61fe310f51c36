"""How much of an answer becomes Python objects. Whole look-ups: tests/integration/test_resolver.py."""

import logging
from typing import Any

import pycares
import pytest

from socks_tunnel_workers.targets import answers


@pytest.fixture
def original(monkeypatch: pytest.MonkeyPatch) -> Any:
    """pycares as it was read, whatever this process has installed before."""

    def parse_dnsrec(dnsrec: Any) -> Any:
        raise AssertionError(f"{dnsrec} is read by pycares")

    monkeypatch.setattr(pycares, "parse_dnsrec", parse_dnsrec)
    return parse_dnsrec


def test_pycares_is_as_it_was_read(original: Any) -> None:
    assert answers.install()
    assert vars(pycares)["parse_dnsrec"] is answers._read is not original
    assert answers.install(), "twice is no harm"


def test_an_answer_that_cannot_be_read_is_an_error() -> None:
    nothing = vars(pycares)["_ffi"].NULL
    assert answers._read(nothing) == (None, pycares.errno.ARES_EBADRESP)


@pytest.mark.parametrize("name", ["maybe_str", "extract_record_data"])
def test_another_pycares_is_left_alone(
    name: str, original: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(pycares, name)
    with caplog.at_level(logging.WARNING):
        assert not answers.install()
    assert vars(pycares)["parse_dnsrec"] is original
    assert "not bounded" in caplog.text


def test_another_signature_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def parse_dnsrec(dnsrec: Any, sections: int) -> Any:
        raise AssertionError((dnsrec, sections))

    monkeypatch.setattr(pycares, "parse_dnsrec", parse_dnsrec)
    assert not answers.install()
    assert vars(pycares)["parse_dnsrec"] is parse_dnsrec
