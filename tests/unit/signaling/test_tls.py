"""Certificates: what an operator is told of them. Their mistakes are data in `bad/tls-*`."""

import datetime as dt
import os
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from socks_tunnel.signaling import tls
from socks_tunnel.signaling.tls import TlsFileError, read_server_certificate
from support.certificates import DAY, Authority

NOW = dt.datetime.now(dt.UTC)
AUTHORITY = Authority("Test Root")


def put(path: Path, text: str, mode: int = 0o640) -> Path:
    path.touch()
    path.chmod(mode)
    path.write_text(text)
    return path


def test_what_is_told_of_a_certificate(tmp_path: Path) -> None:
    path = put(tmp_path / "tls.pem", AUTHORITY.issue("office.example.com", "192.0.2.1").both)
    read = read_server_certificate(path, None)
    assert read.names == ("office.example.com", "192.0.2.1")
    assert str(read) == (
        f"{path}, for office.example.com, 192.0.2.1, until {read.not_after:%Y-%m-%d %H:%M:%S} UTC"
    )
    assert read.complaint(NOW) is None
    assert read.complaint(NOW - 2 * DAY) == (
        f"is not valid before {read.not_before:%Y-%m-%d %H:%M:%S} UTC"
    )
    assert read.complaint(NOW + 2 * DAY) == f"expired at {read.not_after:%Y-%m-%d %H:%M:%S} UTC"


def test_an_expired_one_can_be_served(tmp_path: Path) -> None:
    path = put(tmp_path / "tls.pem", AUTHORITY.issue("x", valid=(-2 * DAY, -DAY)).both)
    complaint = read_server_certificate(path, None).complaint(NOW)
    assert complaint is not None


@pytest.mark.parametrize(
    ("mode", "taken"),
    [(0o600, True), (0o400, True), (0o640, True), (0o440, True)]
    + [(mode, False) for mode in (0o644, 0o604, 0o660, 0o650, 0o601)],
)
def test_the_group_may_read_the_key_and_nobody_else(
    tmp_path: Path, mode: int, *, taken: bool
) -> None:
    path = put(tmp_path / "tls.pem", AUTHORITY.issue("x").both, mode)
    if taken:
        read_server_certificate(path, None)
    else:
        with pytest.raises(TlsFileError, match=f"has mode {mode:04o}: others may use the key") as e:
            read_server_certificate(path, None)
        assert e.value.key == "tls_certificate"


def test_the_key_may_come_first_and_be_rsa(tmp_path: Path) -> None:
    issued = AUTHORITY.issue("x", key=rsa.generate_private_key(65_537, 2048))
    path = put(tmp_path / "tls.pem", issued.key + issued.certificate)
    assert read_server_certificate(path, None).names == ("x",)


def test_a_file_that_goes_away_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = AUTHORITY.issue("x")
    certificate, key = put(tmp_path / "c", issued.certificate), put(tmp_path / "k", issued.key)

    def names(_: object) -> tuple[str, ...]:
        key.unlink(missing_ok=True)
        return ()

    monkeypatch.setattr(tls, "_names", names)
    with pytest.raises(TlsFileError, match="cannot be read: No such file or directory"):
        read_server_certificate(certificate, key)


def test_a_file_that_is_too_long_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = AUTHORITY.issue("office.example.com")
    certificate, key = put(tmp_path / "c.pem", pem.certificate), put(tmp_path / "k.key", pem.key)
    read_server_certificate(certificate, key)
    limit = len(pem.certificate)
    put(key, "#" * limit + pem.key)
    monkeypatch.setattr(tls, "TLS_FILE_MAX", limit)
    with pytest.raises(TlsFileError, match=rf"^{key} is longer than {limit} bytes$") as caught:
        read_server_certificate(certificate, key)
    assert caught.value.key == "tls_key"
    monkeypatch.setattr(tls, "TLS_FILE_MAX", limit - 1)
    with pytest.raises(TlsFileError, match=rf"^{certificate} is longer than") as caught:
        read_server_certificate(certificate, None)
    assert caught.value.key == "tls_certificate"


def test_authorities_that_are_too_long_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = put(tmp_path / "ca.pem", AUTHORITY.certificate)
    assert tls.check_authorities(ca) is None
    limit = len(AUTHORITY.certificate) - 1
    monkeypatch.setattr(tls, "TLS_FILE_MAX", limit)
    assert tls.check_authorities(ca) == (f"{ca} cannot be read: it is longer than {limit} bytes")


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    """To open a FIFO with nobody who writes to it would take for ever."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo, 0o600)
    reason = f"{fifo} cannot be read: it is a FIFO or a pipe, and not a regular file"
    assert tls.check_authorities(fifo) == reason
    for certificate, key in ((fifo, None), (put(tmp_path / "c.pem", AUTHORITY.certificate), fifo)):
        with pytest.raises(TlsFileError, match=f"^{reason}$"):
            read_server_certificate(certificate, key)
