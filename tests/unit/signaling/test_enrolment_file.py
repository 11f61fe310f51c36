"""Enrolments on disk."""

import errno
import os
import stat
from pathlib import Path

import pytest

from socks_tunnel.signaling import enrolment_file as module
from socks_tunnel.signaling import joining
from socks_tunnel.signaling.enrolment_file import DamagedFileError, EnrolmentFile
from socks_tunnel.signaling.identity import PrivateIdentity

ENDPOINT, HOST = PrivateIdentity.generate(), PrivateIdentity.generate()
NOW = 1_700_000_000.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "enrolments"


def test_a_restart_knows_who_has_joined(path: Path) -> None:
    file = EnrolmentFile(path, ENDPOINT)
    file.sync()
    assert not path.exists()
    token = file.enrolments.invite("a", 2, int(NOW) + 100, 0, NOW)
    sent, _ = joining.new_request(HOST, token, "laptop", NOW)
    request = joining.open_request(sent, ENDPOINT.public, NOW)
    assert isinstance(request, joining.JoinRequest)
    assert file.enrolments.join(request, {}, NOW) is not None
    file.sync()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = EnrolmentFile(path, ENDPOINT).enrolments
    assert again.members == file.enrolments.members
    assert again.invitations == file.enrolments.invitations


def test_half_a_line_at_the_end_is_dropped(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = EnrolmentFile(path, ENDPOINT).enrolments
    first.invite("a", 1, int(NOW) + 100, 0, NOW)
    with path.open("ab") as file:
        file.write(b'{"entry": "invi')
    again = EnrolmentFile(path, ENDPOINT).enrolments
    assert again.invitations == first.invitations
    assert "cut short" in caplog.text
    again.invite("b", 1, int(NOW) + 100, 0, NOW)
    assert len(EnrolmentFile(path, ENDPOINT).enrolments.invitations) == 2


def joined(path: Path, name: str, host: PrivateIdentity) -> EnrolmentFile:
    file = EnrolmentFile(path, ENDPOINT)
    token = file.enrolments.invite("a", 1, int(NOW) + 100, 0, NOW)
    sent, _ = joining.new_request(host, token, name, NOW)
    request = joining.open_request(sent, ENDPOINT.public, NOW)
    assert isinstance(request, joining.JoinRequest)
    assert file.enrolments.join(request, {}, NOW) is not None
    return file


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"entry": "revo\x00ed", "name": "laptop", "at": 1}', "it is no JSON"),
        (b'{"entry": "unheard of"}', "the entry 'unheard of' is not known"),
        (b'{"entry": "revoked", "name": "laptoq", "at": 1}', "KeyError: 'laptoq'"),
        (b'{"entry": "revoked-key", "name": "laptop", "key": "AA==", "at": 1}', "ValueError"),
        (b"", "it is no JSON"),
    ],
)
def test_a_line_that_cannot_be_used_lets_nobody_in(path: Path, line: bytes, why: str) -> None:
    """It may have been the revocation of somebody whom the lines before it have let in."""
    joined(path, "laptop", HOST)
    whole = path.read_bytes()
    with path.open("ab") as file:
        file.write(line + b'\n{"entry": "epoch", "epoch": 5}\n')
    damaged = path.read_bytes()
    with pytest.raises(DamagedFileError) as caught:
        EnrolmentFile(path, ENDPOINT)
    assert str(caught.value).startswith(f"{path}:3: this line cannot be used: ")
    assert why in str(caught.value)
    assert path.read_bytes() == damaged, "it is left to the administrator"
    path.write_bytes(whole)
    assert "laptop" in EnrolmentFile(path, ENDPOINT).enrolments.members


def test_a_long_file_is_written_anew(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REWRITE_MIN", 10)
    enrolments = EnrolmentFile(path, ENDPOINT).enrolments
    for _ in range(10):
        token = enrolments.invite("a", 1, int(NOW) + 100, 0, NOW)
        enrolments.withdraw(token.id.hex())
    kept = enrolments.invite("a", 1, int(NOW) + 100, 0, NOW)
    assert len(path.read_bytes().splitlines()) == 21
    assert set(EnrolmentFile(path, ENDPOINT).enrolments.invitations) == {kept.id}
    assert len(path.read_bytes().splitlines()) == 1
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_in_use_does_not_grow_without_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "REWRITE_OPEN_MIN", 10)
    enrolments = EnrolmentFile(path, ENDPOINT).enrolments
    kept = [enrolments.invite("a", 1, int(NOW) + 100, 0, NOW).id]
    for _ in range(20):
        token = enrolments.invite("a", 1, int(NOW) + 100, 0, NOW)
        enrolments.withdraw(token.id.hex())
        assert len(path.read_bytes().splitlines()) <= 10
    kept.append(enrolments.invite("b", 1, int(NOW) + 100, 0, NOW).id)
    assert list(EnrolmentFile(path, ENDPOINT).enrolments.invitations) == kept
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.with_suffix(".new").mkdir()  # what cannot be written anew grows on
    for _ in range(10):
        token = enrolments.invite("a", 1, int(NOW) + 100, 0, NOW)
        enrolments.withdraw(token.id.hex())
    assert "cannot be rewritten without its superseded lines" in caplog.text
    assert list(EnrolmentFile(path, ENDPOINT).enrolments.invitations) == kept


def test_a_failing_disk_leaves_the_old_list(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = EnrolmentFile(path, ENDPOINT)
    kept = file.enrolments.invite("a", 1, int(NOW) + 100, 0, NOW).id

    def failing(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", failing)
        with pytest.raises(OSError, match="Input/output error"):
            file.replace([])
    assert set(EnrolmentFile(path, ENDPOINT).enrolments.invitations) == {kept}


def test_the_name_of_a_new_file_is_on_the_disk_too(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[bool] = []
    real = os.fsync

    def following(fd: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(fd).st_mode))
        real(fd)

    monkeypatch.setattr(os, "fsync", following)
    file = EnrolmentFile(path, ENDPOINT)
    for _ in range(2):
        file.enrolments.invite("a", 1, int(NOW) + 100, 0, NOW)
        file.sync()
    assert synced == [True], "once: the name stays"


def test_what_cannot_be_read_is_an_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FILE_MAX", 10)
    path.write_bytes(b"x" * 11)
    with pytest.raises(OSError, match="longer than 10 bytes"):
        EnrolmentFile(path, ENDPOINT)
    path.unlink()
    path.mkdir()
    with pytest.raises(IsADirectoryError):
        EnrolmentFile(path, ENDPOINT)
