"""Connectionless LDAP: Samba's directory server, asked over UDP as a joining machine does."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need
from support.hosts import DOMAIN, TARGET_ADDRESS


@pytest.fixture(scope="module")
def samba(shared_corporate: Corporate, folder: Path) -> Iterator[Path]:
    """A directory server of its own domain; its configuration file."""
    domain = folder / "ad"
    subprocess.run(
        [
            *(need("samba-tool"), "domain", "provision", f"--realm=AD.{DOMAIN.upper()}"),
            *("--domain=AD", "--server-role=dc", "--dns-backend=NONE", "--host-name=dc1"),
            *(f"--host-ip={TARGET_ADDRESS}", "--adminpass=Office-1234", f"--targetdir={domain}"),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    configuration = domain / "etc" / "smb.conf"
    with shared_corporate.serve(
        *(need("samba"), "--interactive", "--model=single", f"--configfile={configuration}"),
        *("--option=server services=ldap cldap", f"--option=log file={folder}/log.%m"),
        *(f"--option=interfaces={TARGET_ADDRESS}", "--option=bind interfaces only=yes"),
        *(f"--option=pid directory={domain}", f"--option=ncalrpc dir={domain}/ncalrpc"),
        directory=folder,
        tcp=[389],
        udp=[389],
    ):
        yield configuration


def test_cldap(corporate: Corporate, samba: Path, tmp_path: Path) -> None:
    """The search of a joining Windows machine: which domain is this, which site am I in?"""
    before = corporate.metric("flows_total", kind="udp")
    output = corporate.run(
        *(need("net"), "ads", "lookup", "-S", "127.0.0.1", f"--configfile={samba}"),
        *("--option=lock directory=" + str(tmp_path), "--option=cache directory=" + str(tmp_path)),
    ).stdout
    assert f"Domain: ad.{DOMAIN}\n" in output
    assert f"Domain Controller: dc1.ad.{DOMAIN}\n" in output
    corporate.wait_metric(before + 1, "flows_total", kind="udp")
