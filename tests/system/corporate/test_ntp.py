"""NTP: chrony's daemon, asked by NTPsec's ntpdig and by chrony itself."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.corporate import Corporate, need
from support.hosts import TARGET_ADDRESS
from support.processes import wait_until

STRATUM = 7

OFFSET_MAX = 10.0
"""Seconds: both hosts have this machine's clock, so an offset is what the way there and back adds.

A loose bound on a loaded machine."""


@pytest.fixture(scope="module", autouse=True)
def chronyd(shared_corporate: Corporate, folder: Path) -> Iterator[None]:
    (folder / "chrony.conf").write_text(
        f"local stratum {STRATUM}\nallow all\nbindaddress {TARGET_ADDRESS}\ncmdport 0\n"
        f"bindcmdaddress /\npidfile {folder}/pid\n"
    )
    with shared_corporate.serve(
        # -x: it leaves the machine's clock alone.
        *(need("chronyd"), "-d", "-x", "-u", "root", "-f", folder / "chrony.conf"),
        directory=folder,
        udp=[123],
    ):
        yield


def test_ntpdig(corporate: Corporate) -> None:
    def answers() -> list[dict[str, Any]]:
        """None if the answer was late, or lost."""
        done = corporate.run(need("ntpdig"), "--json", "127.0.0.1", check=False)
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    (answer,) = wait_until(answers, "an answer")
    assert answer["stratum"] == STRATUM
    assert abs(float(answer["offset"])) < OFFSET_MAX


def test_chronyd_as_a_client(corporate: Corporate, tmp_path: Path) -> None:
    done = corporate.run(
        *(need("chronyd"), "-Q", "-x", "-u", "root", "-t", "100"),
        *(f"pidfile {tmp_path}/pid", "cmdport 0", "bindcmdaddress /"),
        "server 127.0.0.1 iburst maxsamples 1",
    )
    offset = re.search(r"System clock wrong by (-?[\d.]+) seconds", done.stdout + done.stderr)
    assert offset, done
    assert abs(float(offset[1])) < OFFSET_MAX
