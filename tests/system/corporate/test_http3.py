"""HTTP/3 over QUIC: Caddy, and ngtcp2's client through a UDP forward."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.corporate import Corporate, need, sha256, write_certificate, write_random
from support.hosts import TARGET_ADDRESS

SIZE = 20_000_000


@pytest.fixture(scope="module")
def caddy(shared_corporate: Corporate, folder: Path) -> Iterator[str]:
    """A server with one file; its hash."""
    # The client names this host to the server, whatever address it was given for it.
    certificate, key = write_certificate(folder, "localhost")
    (folder / "www").mkdir()
    digest = write_random(folder / "www" / "big", SIZE)
    (folder / "Caddyfile").write_text(
        "{\n admin off\n auto_https off\n}\n"
        f"https://localhost:8443 {{\n bind {TARGET_ADDRESS}\n tls {certificate} {key}\n"
        f" root * {folder}/www\n file_server\n}}\n"
    )
    with shared_corporate.serve(
        *(need("caddy"), "run", "--config", folder / "Caddyfile", "--adapter", "caddyfile"),
        directory=folder,
        environment={"HOME": str(folder), "XDG_DATA_HOME": str(folder)},
        udp=[8443],
    ):
        yield digest


@pytest.mark.timeout(300)
def test_download(corporate: Corporate, caddy: str, tmp_path: Path) -> None:
    start = time.monotonic()
    corporate.run(
        *(need("gtlsclient"), "--quiet", "--exit-on-all-streams-close"),
        *(f"--download={tmp_path}", "127.0.0.1", "443", "https://localhost:8443/big"),
        timeout=240,
    )
    print(f"\n{SIZE / 1e6:.0f} MB over HTTP/3: {SIZE / 1e6 / (time.monotonic() - start):.1f} MB/s")
    assert sha256(tmp_path / "big") == caddy
