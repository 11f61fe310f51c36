"""DHCP by unicast, as a relay agent asks: Kea, and ISC's perfdhcp in the role of relay and client.

A DHCP server answers a relay agent at its address (giaddr) and, unless the relay says otherwise, port
67. Through a tunnel the agent's address is the endpoint's, the port the one of the association: the
relay says so by the option of RFC 8357 (suboption 19 of option 82).
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need
from support.hosts import ENDPOINT_INSIDE_ADDRESS, TARGET_ADDRESS
from support.processes import wait_until

RELAY_SOURCE_PORT = "82,1300"

EXCHANGES = 3


@pytest.fixture(scope="module")
def leases(shared_corporate: Corporate, folder: Path) -> Iterator[Path]:
    """The file of Kea's leases."""
    configuration = {
        "interfaces-config": {"interfaces": [f"tg0/{TARGET_ADDRESS}"], "dhcp-socket-type": "udp"},
        "lease-database": {
            "type": "memfile",
            "persist": True,
            "name": str(folder / "leases.csv"),
            "lfc-interval": 0,
        },
        "subnet4": [{"subnet": "10.77.1.0/24", "pools": [{"pool": "10.77.1.100-10.77.1.110"}]}],
        "loggers": [
            {"name": "kea-dhcp4", "severity": "INFO", "output_options": [{"output": "stdout"}]}
        ],
    }
    (folder / "kea.json").write_text(json.dumps({"Dhcp4": configuration}))
    with shared_corporate.serve(
        *(need("kea-dhcp4"), "-c", folder / "kea.json"),
        directory=folder,
        environment={"KEA_PIDFILE_DIR": str(folder), "KEA_LOCKFILE_DIR": str(folder)},
        udp=[67],
    ):
        yield folder / "leases.csv"


def test_relayed_exchange(corporate: Corporate, leases: Path, tmp_path: Path) -> None:
    (tmp_path / "relays").write_text(f"{ENDPOINT_INSIDE_ADDRESS}\n")
    done = corporate.run(
        *(need("perfdhcp"), "-4", "-l", "127.0.0.1", "-L", "10067", "-N", "67"),
        *("-J", tmp_path / "relays", "-o", RELAY_SOURCE_PORT),
        # Discover, offer, request, ack; waits 5 s at most for the last of them.
        *("-r", "5", "-n", str(EXCHANGES), "-W", "5000000", "-d", "5", "127.0.0.1"),
    )
    received = re.findall(r"received packets: (\d+)", done.stdout)
    assert received == [str(EXCHANGES), str(EXCHANGES)], done.stdout

    def leased() -> set[str]:
        header, *rows = leases.read_text().splitlines()
        assert header.startswith("address,hwaddr,")
        return {row.split(",")[0] for row in rows}

    wait_until(lambda: leased() == {"10.77.1.100"}, "the address in the server's file")
