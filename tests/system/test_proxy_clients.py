"""HTTP, SOCKS4 and Tor-minded clients that nobody here wrote, through the whole tunnel.

The environment is what these programs are told in offices: `http_proxy` and `https_proxy`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from support.certificates import Authority
from support.corporate import need
from support.hosts import DOMAIN, ENDPOINT_INSIDE_ADDRESS, TARGET_ADDRESS
from support.processes import wait_until
from support.tunnels import MakeTunnel, Site, Tunnel
from support.web_root import NAME, fill

SUPPORT = Path(__file__).parent.parent / "support"
HOST = f"v4.{DOMAIN}"


class Web(NamedTuple):
    """The web servers on the target's host: their URLs, and the authority of the second one."""

    http: str
    https: str
    authority: Path


@pytest.fixture(scope="module")
def web(site: Site) -> Iterator[Web]:
    need("git")
    need("dpkg-deb")
    directory = Path(tempfile.mkdtemp(prefix="web-", dir=site.directory))
    authority = Authority("tests")
    (directory / "ca.pem").write_text(authority.certificate)
    (directory / "server.pem").write_text(authority.issue(HOST, TARGET_ADDRESS).both)
    servers = []
    urls = []
    for scheme, port, certificate in (("http", 8091, ()), ("https", 8092, ("server.pem",))):
        url = f"{scheme}://{HOST}:{port}/"
        urls.append(url)
        fill(directory / scheme, url)
        arguments = [directory / scheme, str(port), *(directory / name for name in certificate)]
        servers.append(
            site.hosts.target.start(sys.executable, SUPPORT / "web_root.py", *map(str, arguments))
        )

    def listening() -> bool:
        for port in (8091, 8092):
            with socket.socket() as sock:
                if sock.connect_ex((TARGET_ADDRESS, port)):
                    return False
        return True

    try:
        wait_until(lambda: site.hosts.target.call(listening), "the web servers")
        yield Web(urls[0], urls[1], directory / "ca.pem")
    finally:
        for server in servers:
            server.terminate()
            server.wait()


def proxied(tunnel: Tunnel, web: Web, home: Path, **more: str) -> dict[str, Any]:
    """Options of `run`: the environment of somebody behind a proxy, who has a home of his own."""
    proxy = f"http://127.0.0.1:{tunnel.socks_port}"
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "http_proxy": proxy,
        "https_proxy": proxy,
        "HTTP_PROXY": proxy,
        "HTTPS_PROXY": proxy,
        "no_proxy": "",
        "SSL_CERT_FILE": str(web.authority),
        "LANG": "C.UTF-8",
    }
    return {"env": environment | more}


# --- curl -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "host"),
    [
        (["-x", "http://{proxy}"], HOST),
        (["-x", "http://{proxy}"], TARGET_ADDRESS),
        (["-p", "-x", "http://{proxy}"], HOST),
        (["--proxy1.0", "{proxy}"], HOST),
        (["-x", "socks4a://{proxy}"], HOST),
        (["-x", "socks4://{proxy}"], TARGET_ADDRESS),
        (["-x", "socks5h://{proxy}"], HOST),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else value,
)
def test_curl(tunnel: Tunnel, options: list[str], host: str) -> None:
    proxy = f"127.0.0.1:{tunnel.socks_port}"
    arguments = [option.format(proxy=proxy) for option in options]
    url = f"http://{host}:{tunnel.site.ports['http']}/whoami"
    done = tunnel.site.gateway.run(need("curl"), "-sS", "--noproxy", "", *arguments, url, url)
    assert done.stdout.count(f'"address": "{ENDPOINT_INSIDE_ADDRESS}"') == 2


@pytest.mark.parametrize("method", ["-x", "-p"])
@pytest.mark.parametrize(
    ("destination", "status"),
    [
        (f"{TARGET_ADDRESS}:9", "502"),  # nobody listens on the discard port
        (f"{TARGET_ADDRESS}:25", "403"),  # denied_ports
        ("192.0.2.1:80", "403"),  # not in allowed_hosts
        (f"loop.{DOMAIN}:80", "403"),  # an allowed name that resolves to loopback
        (f"nobody.{DOMAIN}:80", "502"),
    ],
)
def test_curl_is_told_why(tunnel: Tunnel, method: str, destination: str, status: str) -> None:
    options = ["-x", f"http://127.0.0.1:{tunnel.socks_port}"]
    if method == "-p":
        options.append("-p")
    done = tunnel.site.gateway.run(
        *(need("curl"), "-sS", "--noproxy", "", "-w", "\n%{http_code} %{http_connect}", *options),
        f"http://{destination}/",
        check=False,
    )
    body, _, codes = done.stdout.rpartition("\n")
    if method == "-p":
        assert codes.split()[1] == status
    else:
        assert codes.split()[0] == status
        assert body.startswith("socks-tunnel: ")
        assert len(body.strip().splitlines()) == 1


def test_curl_posts_and_keeps_its_connection(tunnel: Tunnel, tmp_path: Path) -> None:
    upload = tmp_path / "upload"
    upload.write_bytes(os.urandom(5 << 20))
    url = f"http://{HOST}:{tunnel.site.ports['http']}/upload"
    done = tunnel.site.gateway.run(
        *(need("curl"), "-sS", "--noproxy", "", "-x", f"http://127.0.0.1:{tunnel.socks_port}"),
        *("-w", "%{num_connects}\n", "-T", upload, url, "-T", upload, url),
    )
    digest = hashlib.sha256(upload.read_bytes()).hexdigest()
    assert done.stdout.count(digest) == 2, done
    assert done.stdout.endswith("0\n"), "the second one went over the first one's connection"


def test_curl_has_to_log_in(make_tunnel: MakeTunnel) -> None:
    tunnel = make_tunnel(start=False)
    program = Path(sys.executable).parent / "socks-tunnel"
    line = subprocess.run(
        [program, "passwd", "ana", "--password", "secret"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    tunnel.homes["gateway"].put("users", line)
    tunnel.gateway_settings["socks"] |= {"users_file": "users"}
    tunnel.start()
    url = f"http://{HOST}:{tunnel.site.ports['http']}/whoami"
    proxy = f"http://127.0.0.1:{tunnel.socks_port}"
    for options, status in (
        (["-x", proxy], "407"),
        (["-x", proxy, "--proxy-user", "ana:wrong"], "407"),
        (["-x", proxy, "--proxy-user", "ana:secret"], "200"),
        (["-x", proxy, "--proxy-user", "ana:secret", "--proxy-anyauth"], "200"),
        (["-p", "-x", proxy, "--proxy-user", "ana:secret"], "200"),
    ):
        done = tunnel.site.gateway.run(
            *(need("curl"), "-sS", "--noproxy", "", "-o", "/dev/null", "-w", "%{http_code}"),
            *options,
            url,
        )
        assert done.stdout == status, options


# --- what fetches source and packages -------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_git_clones(tunnel: Tunnel, web: Web, tmp_path: Path, scheme: str) -> None:
    url = getattr(web, scheme)
    tunnel.site.gateway.run(
        *(need("git"), "clone", "-q", f"{url}repo.git", tmp_path / "clone"),
        **proxied(tunnel, web, tmp_path, GIT_SSL_CAINFO=str(web.authority)),
    )
    assert (tmp_path / "clone" / "file").read_text() == "from git\n"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_pip_installs(tunnel: Tunnel, web: Web, tmp_path: Path, scheme: str) -> None:
    url = getattr(web, scheme)
    tunnel.site.gateway.run(
        *(sys.executable, "-m", "pip", "--isolated", "--disable-pip-version-check", "install"),
        *("--quiet", "--no-cache-dir", "--index-url", f"{url}simple/", "--cert", web.authority),
        *("--trusted-host", HOST, "--target", tmp_path / "site", NAME, "--root-user-action=ignore"),
        *("--proxy", f"http://127.0.0.1:{tunnel.socks_port}"),
        **proxied(tunnel, web, tmp_path),
    )
    assert (tmp_path / "site" / f"{NAME}.py").exists()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_npm_installs(tunnel: Tunnel, web: Web, tmp_path: Path, scheme: str) -> None:
    url = getattr(web, scheme)
    project = tmp_path / "project"
    project.mkdir()
    (project / "package.json").write_text("{}")
    tunnel.site.gateway.run(
        *(need("npm"), "install", "--prefix", project, "--no-audit", "--no-fund"),
        *("--loglevel=error", f"--registry={url}npm/", f"--cafile={web.authority}", NAME),
        timeout=120,
        **proxied(tunnel, web, tmp_path),
    )
    assert "from npm" in (project / "node_modules" / NAME / "index.js").read_text()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_apt_updates_and_downloads(tunnel: Tunnel, web: Web, tmp_path: Path, scheme: str) -> None:
    url = getattr(web, scheme)
    for name in ("lists/partial", "archives/partial", "etc"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "etc" / "sources.list").write_text(f"deb [trusted=yes] {url}debian ./\n")
    (tmp_path / "status").write_text("")
    options = {
        "Dir::State": tmp_path,
        "Dir::State::Lists": tmp_path / "lists",
        "Dir::State::status": tmp_path / "status",
        "Dir::Cache": tmp_path,
        "Dir::Cache::archives": tmp_path / "archives",
        "Dir::Etc::sourcelist": tmp_path / "etc" / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "-",
        "APT::Sandbox::User": "root",
        "APT::Get::AllowUnauthenticated": "true",
        "Acquire::Languages": "none",
        "Acquire::https::CaInfo": web.authority,
    }
    arguments = [part for key, value in options.items() for part in ("-o", f"{key}={value}")]
    environment = proxied(tunnel, web, tmp_path)
    tunnel.site.gateway.run(need("apt-get"), *arguments, "-q", "update", **environment)
    tunnel.site.gateway.run(
        need("apt-get"), *arguments, "-q", "download", NAME, cwd=tmp_path, **environment
    )
    assert list(tmp_path.glob(f"{NAME}*.deb"))


def test_a_program_in_go(tunnel: Tunnel, web: Web, tmp_path: Path) -> None:
    """kubectl: Go's net/http decides about proxies in it, as in Docker and most cloud tools."""
    done = tunnel.site.gateway.run(
        *(need("kubectl"), "--server", web.https, "--certificate-authority", web.authority),
        *("--token", "t", "--request-timeout=90s", "get", "--raw", "/version"),
        **proxied(tunnel, web, tmp_path),
    )
    assert json.loads(done.stdout) == {"major": "1", "minor": "2"}


# --- torsocks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", [HOST, TARGET_ADDRESS])
def test_torsocks_resolves_and_connects(tunnel: Tunnel, tmp_path: Path, host: str) -> None:
    config = tmp_path / "torsocks.conf"
    config.write_text(f"TorAddress 127.0.0.1\nTorPort {tunnel.socks_port}\n")
    url = f"http://{host}:{tunnel.site.ports['http']}/whoami"
    program = f"import urllib.request; print(urllib.request.urlopen({url!r}).read().decode())"
    before = tunnel.metric("requests_total", command="resolve", reply="succeeded")
    done = tunnel.site.gateway.run(
        *(need("torsocks"), shutil.which("python3", path="/usr/bin") or sys.executable),
        *("-c", program),
        env={"PATH": os.environ["PATH"], "TORSOCKS_CONF_FILE": str(config)},
    )
    assert f'"address": "{ENDPOINT_INSIDE_ADDRESS}"' in done.stdout, done
    if host == HOST:
        wait_until(
            lambda: tunnel.metric("requests_total", command="resolve", reply="succeeded") > before,
            "a RESOLVE counted",
        )


# --- SSH ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "arguments"),
    [
        ("nc.openbsd", "-X connect -x 127.0.0.1:{port}"),
        ("nc.openbsd", "-X 4 -x 127.0.0.1:{port}"),
        ("ncat", "--proxy-type http --proxy 127.0.0.1:{port}"),
        ("ncat", "--proxy-type socks4 --proxy 127.0.0.1:{port}"),
    ],
)
def test_what_ssh_uses_as_a_proxy_command(tunnel: Tunnel, program: str, arguments: str) -> None:
    """The programs that stand in ProxyCommand; the SSH server is in test_clients.py."""
    payload = os.urandom(2 << 20)
    command = arguments.format(port=tunnel.socks_port).split()
    done = subprocess.run(
        tunnel.site.gateway.command(
            *(need(program), *(["-N"] if program == "nc.openbsd" else []), *command),
            *(TARGET_ADDRESS, str(tunnel.site.ports["echo"])),
        ),
        input=payload,
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.stdout == payload, done.stderr


# --- browsers -------------------------------------------------------------------------------------


def test_a_web_page_cannot_use_the_port(tunnel: Tunnel) -> None:
    before = tunnel.metric("socks_rejected_total", reason="origin-form")
    done = tunnel.site.gateway.run(
        *(need("curl"), "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-d", "x=1"),
        f"http://127.0.0.1:{tunnel.socks_port}/cgi",
    )
    assert done.stdout == "400"
    wait_until(
        lambda: tunnel.metric("socks_rejected_total", reason="origin-form") > before,
        "the request counted",
    )
