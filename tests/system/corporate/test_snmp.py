"""SNMP: Net-SNMP's agent and its tools, version 2c, and version 3 with authentication and privacy."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need
from support.hosts import TARGET_ADDRESS

SYSTEM = ".1.3.6.1.2.1.1"
NAME, LOCATION = f"{SYSTEM}.5.0", f"{SYSTEM}.6.0"

V2C = ["-v2c", "-c", "office"]
V3 = [
    *("-v3", "-l", "authPriv", "-u", "alice", "-a", "SHA", "-A", "authentic-1"),
    *("-x", "AES", "-X", "private-1"),
]


@pytest.fixture(scope="module", autouse=True)
def snmpd(shared_corporate: Corporate, folder: Path) -> Iterator[None]:
    (folder / "snmpd.conf").write_text(
        f"agentAddress udp:{TARGET_ADDRESS}:161\nsysName printer-3\nsysLocation second floor\n"
        "rocommunity office\n"
        "createUser alice SHA authentic-1 AES private-1\nrouser alice priv\n"
    )
    with shared_corporate.serve(
        *(need("snmpd"), "-f", "-Lo", "-C", "-c", folder / "snmpd.conf"),
        directory=folder,
        environment={"SNMP_PERSISTENT_DIR": str(folder)},
        udp=[161],
    ):
        yield


def ask(corporate: Corporate, folder: Path, tool: str, *arguments: str, check: bool = True) -> str:
    done = corporate.run(
        *(need(tool), "-On", "-t", "5", *arguments),
        check=check,
        env={"PATH": "/usr/bin:/bin", "SNMP_PERSISTENT_DIR": str(folder), "MIBS": ""},
    )
    return done.stdout if check else done.stderr


@pytest.mark.parametrize("version", [V2C, V3], ids=["v2c", "v3"])
def test_get(corporate: Corporate, tmp_path: Path, version: list[str]) -> None:
    output = ask(corporate, tmp_path, "snmpget", *version, "127.0.0.1", NAME, LOCATION)
    assert output.splitlines() == [
        f'{NAME} = STRING: "printer-3"',
        f'{LOCATION} = STRING: "second floor"',
    ]


@pytest.mark.parametrize("version", [V2C, V3], ids=["v2c", "v3"])
def test_walk(corporate: Corporate, tmp_path: Path, version: list[str]) -> None:
    lines = ask(corporate, tmp_path, "snmpwalk", *version, "127.0.0.1", SYSTEM).splitlines()
    assert len(lines) > 10
    assert all(line.startswith(f"{SYSTEM}.") for line in lines)
    assert f'{NAME} = STRING: "printer-3"' in lines


def test_wrong_password_is_an_error_of_snmp(corporate: Corporate, tmp_path: Path) -> None:
    wrong = [word.replace("authentic-1", "authentic-2") for word in V3]
    output = ask(corporate, tmp_path, "snmpget", *wrong, "127.0.0.1", NAME, check=False)
    assert "Authentication failure" in output
