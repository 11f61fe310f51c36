"""HTTP and HTTPS: nginx, and curl by a name that only the endpoint can resolve."""

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.corporate import (
    IDLE_TCP,
    Corporate,
    need,
    sha256,
    write_certificate,
    write_random,
)
from support.hosts import DOMAIN, TARGET_ADDRESS

NAME = f"www.{DOMAIN}"
SIZE = 100_000_000
MEDIUM = 5_000_000


@dataclass
class Nginx:
    certificate: Path
    hash: str
    medium: str


@pytest.fixture(scope="module")
def nginx(shared_corporate: Corporate, folder: Path) -> Iterator[Nginx]:
    program = need("nginx")
    certificate, key = write_certificate(folder, NAME)
    (folder / "www").mkdir()
    digest = write_random(folder / "www" / "big", SIZE)
    medium = write_random(folder / "www" / "medium", MEDIUM)
    (folder / "www" / "small").write_text("small\n")
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log stderr;\n"
        "events {}\n"
        f"http {{ access_log off; keepalive_timeout 600; sendfile on; root {folder}/www;\n"
        f"  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};\n"
        f"  uwsgi_temp_path {folder}; scgi_temp_path {folder};\n"
        f"  server {{ listen {TARGET_ADDRESS}:80; }}\n"
        f"  server {{ listen {TARGET_ADDRESS}:443 ssl http2;\n"
        f"    ssl_certificate {certificate}; ssl_certificate_key {key}; }}\n"
        "}\n"
    )
    with shared_corporate.serve(
        program, "-c", folder / "nginx.conf", directory=folder, tcp=[80, 443]
    ):
        yield Nginx(certificate, digest, medium)


def curl(corporate: Corporate, nginx: Nginx) -> list[str | Path]:
    """The beginning of a curl command line."""
    return [
        *(need("curl"), "-sS", "--fail", "--socks5-hostname", corporate.socks),
        *("--cacert", nginx.certificate),
    ]


def test_the_name_means_nothing_on_the_clients_host(corporate: Corporate) -> None:
    assert corporate.run("getent", "hosts", NAME, check=False).returncode == 2
    assert corporate.run("ip", "route", "get", TARGET_ADDRESS, check=False).returncode != 0


@pytest.mark.parametrize(("scheme", "version"), [("http", "1.1"), ("https", "2")])
def test_version(corporate: Corporate, nginx: Nginx, scheme: str, version: str) -> None:
    done = corporate.run(
        *curl(corporate, nginx), "-w", "%{http_version}", f"{scheme}://{NAME}/small"
    )
    assert done.stdout == f"small\n{version}"


@pytest.mark.timeout(400)
def test_large_download(corporate: Corporate, nginx: Nginx, tmp_path: Path) -> None:
    done = corporate.run(
        *(*curl(corporate, nginx), "--http2", "-o", tmp_path / "got"),
        *("-w", "%{http_version} %{size_download} %{speed_download}", f"https://{NAME}/big"),
        timeout=360,
    )
    version, size, speed = done.stdout.split()
    print(f"\n{SIZE / 1e6:.0f} MB over HTTP/2: {int(speed) / 1e6:.1f} MB/s")
    assert (version, size) == ("2", str(SIZE))
    assert sha256(tmp_path / "got") == nginx.hash


def test_one_percent_loss(corporate: Corporate, nginx: Nginx, tmp_path: Path) -> None:
    with corporate.loss():
        done = corporate.run(
            *(*curl(corporate, nginx), "-o", tmp_path / "got", "-w", "%{speed_download}"),
            f"https://{NAME}/medium",
        )
    print(f"\n{MEDIUM / 1e6:.0f} MB with 1 % loss: {int(done.stdout) / 1e6:.1f} MB/s")
    assert sha256(tmp_path / "got") == nginx.medium


def test_keep_alive_connections_that_are_silent(corporate: Corporate, nginx: Nginx) -> None:
    """Ten silent minutes where idle_tcp allows a quarter of an hour: here both are some seconds.

    curl makes two requests with a pause between them, on one connection where that is still there.
    """
    below, above = 12, 3  # requests a minute: pauses of 5 s and of 20 s
    assert 60 / below < IDLE_TCP < 60 / above
    waiting = {
        rate: subprocess.Popen(
            corporate.client.command(
                *(*curl(corporate, nginx), "--rate", f"{rate}/m", "-w", "%{num_connects} "),
                *("-o", "/dev/null", "-o", "/dev/null"),
                *(f"https://{NAME}/small", f"https://{NAME}/small"),
            ),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rate in (below, above)
    }
    connects = {
        rate: process.communicate(timeout=120)[0].split() for rate, process in waiting.items()
    }
    assert [process.returncode for process in waiting.values()] == [0, 0]
    assert connects == {below: ["1", "0"], above: ["1", "1"]}
