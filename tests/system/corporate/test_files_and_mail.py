"""FTP in passive mode, SMTP and IMAP: vsftpd, aiosmtpd and Dovecot, with curl over SOCKS5 by name."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need, sha256, write_random
from support.hosts import DOMAIN, TARGET_ADDRESS

NAME = f"www.{DOMAIN}"
SIZE = 2_000_000
NOBODY = 65534


def curl(corporate: Corporate, *arguments: str | Path) -> str:
    return corporate.run(
        need("curl"), "-sS", "--socks5-hostname", corporate.socks, *arguments
    ).stdout


@pytest.fixture(scope="module")
def ftp(shared_corporate: Corporate) -> Iterator[str]:
    """A server with one file; its hash."""
    folder = shared_corporate.folder("ftp")
    for name in ("files", "empty"):
        (folder / name).mkdir()
    digest = write_random(folder / "files" / "plan", SIZE)
    (folder / "vsftpd.conf").write_text(
        f"listen=YES\nlisten_address={TARGET_ADDRESS}\nbackground=NO\nanonymous_enable=YES\n"
        f"local_enable=NO\nno_anon_password=YES\nanon_root={folder}/files\n"
        f"secure_chroot_dir={folder}/empty\npasv_min_port=40000\npasv_max_port=40100\n"
        "connect_from_port_20=NO\nseccomp_sandbox=NO\nxferlog_enable=NO\n"
    )
    with shared_corporate.serve(need("vsftpd"), folder / "vsftpd.conf", directory=folder, tcp=[21]):
        yield digest


@pytest.mark.parametrize("mode", ["--ftp-pasv", "--disable-epsv"], ids=["EPSV", "PASV"])
def test_passive_ftp(corporate: Corporate, ftp: str, tmp_path: Path, mode: str) -> None:
    assert "plan" in curl(corporate, mode, f"ftp://{NAME}/")
    curl(corporate, mode, "-o", tmp_path / "got", f"ftp://{NAME}/plan")
    assert sha256(tmp_path / "got") == ftp


@pytest.fixture(scope="module")
def mailbox(shared_corporate: Corporate) -> Iterator[Path]:
    """A mailbox that mail for anybody goes to, with a server for SMTP and one for IMAP."""
    folder = shared_corporate.folder("mail", owner="nobody")
    inbox = folder / "inbox"
    dovecot = shared_corporate.folder("dovecot")
    (dovecot / "dovecot.conf").write_text(
        f"protocols = imap\nbase_dir = {dovecot}/run\nstate_dir = {dovecot}/state\n"
        f"listen = {TARGET_ADDRESS}\nlog_path = /dev/stderr\nssl = no\n"
        f"disable_plaintext_auth = no\nfirst_valid_uid = 1\nmail_location = maildir:{inbox}\n"
        "passdb {\n driver = static\n args = password=secret\n}\n"
        f"userdb {{\n driver = static\n args = uid={NOBODY} gid={NOBODY} home={folder}\n}}\n"
        "service imap-login {\n inet_listener imaps {\n  port = 0\n }\n}\n"
    )
    # As the user whose mailbox it is, on a port that only root may have elsewhere.
    shared_corporate.office.sysctl("net/ipv4/ip_unprivileged_port_start", "25")
    with (
        shared_corporate.serve(
            *(need("aiosmtpd"), "-n", "-l", f"{TARGET_ADDRESS}:25"),
            *("-c", "aiosmtpd.handlers.Mailbox", inbox),
            directory=folder,
            user="nobody",
            tcp=[25],
        ),
        shared_corporate.serve(
            *(need("dovecot"), "-F", "-c", dovecot / "dovecot.conf"), directory=dovecot, tcp=[143]
        ),
    ):
        yield inbox


def test_mail_is_sent_by_smtp_and_read_by_imap(
    corporate: Corporate, mailbox: Path, tmp_path: Path
) -> None:
    need("/usr/lib/dovecot/imap")
    lines = [f"line {number:05} of the report" for number in range(5000)]
    message = "\r\n".join(["From: alice@internal.corp", "Subject: report", "", *lines, ""])
    (tmp_path / "message").write_text(message, newline="")
    curl(
        corporate,
        *(f"smtp://{NAME}:25", "--mail-from", "alice@internal.corp"),
        *("--mail-rcpt", "bob@internal.corp", "-T", tmp_path / "message"),
    )
    assert len(list((mailbox / "new").iterdir())) == 1
    login = ("-u", "bob:secret")
    assert "EXISTS" in curl(corporate, *login, f"imap://{NAME}/", "-X", "EXAMINE INBOX")
    read = curl(corporate, *login, f"imap://{NAME}/INBOX;MAILINDEX=1")
    assert "Subject: report" in read
    assert [line for line in read.splitlines() if line.startswith("line ")] == lines
