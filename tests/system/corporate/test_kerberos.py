"""Kerberos: MIT krb5kdc, and kinit through forwards."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need
from support.hosts import TARGET_ADDRESS

REALM = "INTERNAL.CORP"
PASSWORD = "correct horse"

Kinit = Callable[[str, str], tuple[subprocess.CompletedProcess[str], str, dict[str, str]]]


@pytest.fixture(scope="module", autouse=True)
def kdc(shared_corporate: Corporate, folder: Path) -> Iterator[None]:
    (folder / "kdc.conf").write_text(
        f"[kdcdefaults]\n kdc_listen = {TARGET_ADDRESS}:88\n kdc_tcp_listen = {TARGET_ADDRESS}:88\n"
        f"[realms]\n {REALM} = {{\n  database_name = {folder}/principal\n"
        f"  key_stash_file = {folder}/stash\n  acl_file = {folder}/acl\n }}\n"
        "[logging]\n kdc = STDERR\n"
    )
    (folder / "krb5.conf").write_text(f"[libdefaults]\n default_realm = {REALM}\n")
    environment = {
        "KRB5_CONFIG": str(folder / "krb5.conf"),
        "KRB5_KDC_PROFILE": str(folder / "kdc.conf"),
    }
    for command in (
        [need("kdb5_util"), "create", "-s", "-r", REALM, "-P", "master"],
        [need("kadmin.local"), "addprinc", "-pw", PASSWORD, "+requires_preauth", "alice"],
    ):
        subprocess.run(command, env=environment, check=True, capture_output=True)
    with shared_corporate.serve(
        need("krb5kdc"), "-n", directory=folder, environment=environment, tcp=[88], udp=[88]
    ):
        yield


@pytest.fixture
def kinit(corporate: Corporate, tmp_path: Path) -> Kinit:
    """Asks for alice's ticket: (what kinit said, what it did on the network, its environment)."""

    def call(
        transport: str, password: str
    ) -> tuple[subprocess.CompletedProcess[str], str, dict[str, str]]:
        # The client's own file: it knows the forward only. Requests longer than the limit go by TCP.
        limit = 1 if transport == "tcp" else 32_700
        (tmp_path / "krb5.conf").write_text(
            f"[libdefaults]\n default_realm = {REALM}\n udp_preference_limit = {limit}\n"
            " dns_lookup_kdc = false\n"
            f"[realms]\n {REALM} = {{\n  kdc = 127.0.0.1\n }}\n"
        )
        trace = tmp_path / "trace"
        environment = {
            "PATH": "/usr/bin:/bin",
            "KRB5_CONFIG": str(tmp_path / "krb5.conf"),
            "KRB5CCNAME": f"FILE:{tmp_path}/tickets",
            "KRB5_TRACE": str(trace),
            "LC_ALL": "C",
        }
        done = corporate.run(
            need("kinit"), "alice", check=False, env=environment, input=f"{password}\n"
        )
        return done, trace.read_text(), environment

    return call


@pytest.mark.parametrize(
    ("transport", "used", "unused"),
    [
        ("udp", "UDP request to dgram", "stream 127"),
        ("tcp", "TCP connection to stream", "dgram 127"),
    ],
)
def test_ticket(corporate: Corporate, kinit: Kinit, transport: str, used: str, unused: str) -> None:
    done, trace, environment = kinit(transport, PASSWORD)
    assert done.returncode == 0, done.stderr + trace
    # Where an answer takes a second, kinit tries the other transport beside it.
    assert f"{used} 127.0.0.1:88" in trace.partition(unused)[0]
    tickets = corporate.run(need("klist"), env=environment).stdout
    assert f"Default principal: alice@{REALM}" in tickets
    assert f"krbtgt/{REALM}@{REALM}" in tickets


@pytest.mark.parametrize("transport", ["udp", "tcp"])
def test_wrong_password_is_an_error_of_kerberos(kinit: Kinit, transport: str) -> None:
    done, _, _ = kinit(transport, "wrong")
    assert done.returncode == 1
    assert "Password incorrect" in done.stderr


def test_unknown_principal_is_an_error_of_kerberos(corporate: Corporate, kinit: Kinit) -> None:
    _, _, environment = kinit("udp", PASSWORD)
    done = corporate.run(need("kinit"), "mallory", check=False, env=environment, input="x\n")
    assert "not found in Kerberos database" in done.stderr
