"""TFTP, whose server answers from another port: tftpd-hpa, and tftp under socksify."""

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, corporate_tunnel, need, sha256, write_random
from support.hosts import TARGET_ADDRESS
from support.tunnels import Site, Tunnel

SIZE = 300_000


@pytest.fixture(scope="module")
def tftpd(office_site: Site, shared_corporate: Corporate, folder: Path) -> Iterator[str]:
    """A server with one file; its hash."""
    (folder / "files").mkdir()
    digest = write_random(folder / "files" / "firmware", SIZE)
    (folder / "files" / "firmware").chmod(0o644)
    with shared_corporate.serve(
        *(need("in.tftpd"), "--foreground", "--user", "root", "--address", f"{TARGET_ADDRESS}:69"),
        *("--secure", folder / "files"),
        directory=folder,
        udp=[69],
    ):
        yield digest


def fetch(corporate: Corporate, file: Path, timeout: float = 60, *, check: bool = True) -> str:
    """What tftp prints; the file is there if all went well."""
    return corporate.run(
        *(*corporate.socksify(), need("tftp"), "-m", "binary", TARGET_ADDRESS),
        *("-c", "get", "firmware", file),
        timeout=timeout,
        check=check,
    ).stdout


def test_address_dependent_filtering_lets_it_work(
    corporate: Corporate, tftpd: str, tmp_path: Path
) -> None:
    assert corporate.endpoint_settings.get("udp_filtering") is None  # the default
    fetch(corporate, tmp_path / "got")
    assert sha256(tmp_path / "got") == tftpd


def test_address_and_port_dependent_filtering_refuses_it(
    office_site: Site,
    tftpd: str,
    tmp_path: Path,
    report_logs: Callable[[Tunnel], None],
) -> None:
    with corporate_tunnel(
        office_site,
        endpoint={"udp_filtering": "address-and-port-dependent"},
        forwards=False,
    ) as corporate:
        report_logs(corporate)
        # It gives up by itself, or goes on for long.
        with contextlib.suppress(subprocess.TimeoutExpired):
            fetch(corporate, tmp_path / "got", timeout=20, check=False)
        corporate.wait_metric(1, "udp_dropped_total", "endpoint", reason="filtered")
    got = tmp_path / "got"
    assert not got.exists() or got.stat().st_size == 0
