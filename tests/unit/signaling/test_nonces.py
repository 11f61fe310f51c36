"""Nonces over a restart: what was accepted once stays refused, whatever becomes of the file."""

import errno
import os
from pathlib import Path

import pytest

from socks_tunnel.signaling import nonces
from socks_tunnel.signaling.envelope import EnvelopeRejected, Verifier, new_body, seal
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.signaling.nonces import NonceFile

NOW = 1_800_000_000.0
GATEWAY, ENDPOINT = PrivateIdentity.generate(), PrivateIdentity.generate()


def offer(now: float = NOW) -> bytes:
    body = new_body("offer", GATEWAY, ENDPOINT.public, session=bytes(16), now=now, sdp="v=0")
    return seal(GATEWAY, body)


def started(path: Path, now: float | None = NOW) -> Verifier:
    """A process that has just started."""
    verifier = Verifier(ENDPOINT.public, {GATEWAY.public: "laptop"})
    verifier.keep_in(NonceFile(path), now)
    return verifier


def test_what_came_before_a_restart_is_refused_after_it(tmp_path: Path) -> None:
    path, envelope = tmp_path / "nonces", offer()
    started(path).open(envelope, NOW)
    for _ in range(3):
        with pytest.raises(EnvelopeRejected) as caught:
            started(path).open(envelope, NOW + 1)
        assert caught.value.reason_code == "replayed"
    assert path.stat().st_mode & 0o077 == 0
    started(path).open(offer(), NOW)


def test_what_has_expired_leaves_the_file(tmp_path: Path) -> None:
    path = tmp_path / "nonces"
    verifier = started(path)
    for _ in range(10):
        verifier.open(offer(), NOW)
    assert path.stat().st_size == 560
    assert started(path, NOW + 30).remembered == 10
    assert started(path, NOW + 61).remembered == 0
    assert path.stat().st_size == 0


def test_the_file_grows_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nonces, "REWRITE_MIN", 560)
    path = tmp_path / "nonces"
    verifier = started(path)
    largest = 0
    for number in range(200):
        verifier.open(offer(NOW + 10 * number), NOW + 10 * number)  # each outlives the next five
        largest = max(largest, path.stat().st_size)
    assert largest <= 2 * 7 * 56 + 56, "twice what has not expired"
    last = offer(NOW + 2000)
    verifier.open(last, NOW + 2000)
    with pytest.raises(EnvelopeRejected):
        started(path, NOW + 2001).open(last, NOW + 2001)


@pytest.mark.parametrize("tail", [b"x", bytes(55), b"\xff" * 100])
def test_a_record_that_was_cut_short_is_ignored(tmp_path: Path, tail: bytes) -> None:
    path, envelope = tmp_path / "nonces", offer()
    started(path).open(envelope, NOW)
    with path.open("ab") as file:
        file.write(tail)
    with pytest.raises(EnvelopeRejected):
        started(path).open(envelope, NOW)


def test_a_file_that_cannot_be_used_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    verifier = started(tmp_path / "absent" / "nonces")
    verifier.open(offer(), NOW)
    verifier.open(offer(), NOW)
    assert caplog.text.count("cannot be used: No such file or directory") == 1


def test_a_disk_that_takes_a_part_of_a_record_spoils_no_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "nonces"
    verifier = started(path)
    real_write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", lambda fd, data: real_write(fd, data[:20]))
        verifier.open(offer(), NOW)
    last = offer()
    verifier.open(last, NOW)
    with pytest.raises(EnvelopeRejected) as caught:
        started(path).open(last, NOW)
    assert caught.value.reason_code == "replayed"


def test_a_file_that_cannot_be_written_anew_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path, envelope = tmp_path / "nonces", offer()
    started(path).open(envelope, NOW)

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        started(path)
    assert "cannot be used: Input/output error" in caplog.text
    with pytest.raises(EnvelopeRejected):
        started(path).open(envelope, NOW)


def test_while_the_time_is_not_known_nothing_is_forgotten(tmp_path: Path) -> None:
    path, envelope = tmp_path / "nonces", offer()
    started(path).open(envelope, NOW)
    with pytest.raises(EnvelopeRejected) as caught:
        started(path, None).open(envelope, NOW)
    assert caught.value.reason_code == "replayed"


def test_what_a_restart_has_forgotten_stays_refused_when_the_clock_goes_back(
    tmp_path: Path,
) -> None:
    path, envelope = tmp_path / "nonces", offer()
    started(path).open(envelope, NOW)
    again = started(path, NOW + 3600)  # the clock is wrong, and the nonce is dropped
    assert again.remembered == 0
    with pytest.raises(EnvelopeRejected) as caught:
        again.open(envelope, NOW)
    assert caught.value.reason_code == "expired"
    again.open(offer(NOW + 2), NOW + 2)  # what is newer is not refused for it
