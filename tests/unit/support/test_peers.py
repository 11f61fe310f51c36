"""A missing peer is a reason to skip a test, except where it is required."""

import pytest

from support.peers import no_peer


def test_a_missing_peer_skips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTEROP", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        no_peer("no browser")


def test_a_missing_peer_that_is_required_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTEROP", "required")
    with pytest.raises(pytest.fail.Exception, match="no browser"):
        no_peer("no browser")
