"""Signalling by HTTPS, end to end: a private authority, renewal under a flow, and what goes wrong."""

import contextlib
import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.certificates import DAY, Authority, Issued
from support.corporate import need
from support.hosts import ENDPOINT_ADDRESS
from support.machines import Machine
from support.processes import wait_until
from support.tunnels import MakeTunnel, Tunnel
from support.units import UnitHome


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("Corporate Root")


def https_tunnel(make_tunnel: MakeTunnel, authority: Authority, certificate: str) -> Tunnel:
    """A tunnel with a certificate and its key in one file, not started."""
    tunnel = make_tunnel(start=False)
    (peer,) = tunnel.gateway_settings["peers"]
    tunnel.homes["gateway"].put("ca.pem", authority.certificate)
    tunnel.homes["endpoint"].put("tls.pem", certificate)
    url = peer["url"].replace("http:", "https:")
    tunnel.write("gateway", {"peers": [{**peer, "url": url, "tls_ca": "ca.pem"}]})
    tunnel.write("endpoint", {"signaling": {"tls_certificate": "tls.pem"}})
    return tunnel


def served(tunnel: Tunnel) -> str:
    """The certificate that the endpoint serves to a new connection, in PEM."""
    with tunnel.site.gateway.inside():
        sock = socket.create_connection((ENDPOINT_ADDRESS, tunnel.signaling_port), timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with sock, context.wrap_socket(sock) as tls:
        assert tls.version() == "TLSv1.3"
        der = tls.getpeercert(binary_form=True)
    assert der is not None
    return ssl.DER_cert_to_PEM_cert(der)


LINEAGE = "/etc/letsencrypt/live/office.example.com"
"""Where certbot has a certificate: in a folder that only root may enter."""


def machine_of(tunnel: Tunnel) -> Machine:
    """The booted host of the endpoint; the test is skipped where it is none."""
    home = tunnel.homes["endpoint"]
    if not isinstance(home, UnitHome):
        pytest.skip("this is about a unit, and needs hosts that boot systemd")
    return home.machine


def put_lineage(machine: Machine, issued: Issued) -> None:
    """Put a certificate and its key where certbot has them."""
    machine.sh(f"install -d -m 700 /etc/letsencrypt/live {LINEAGE}")
    machine.write(f"{LINEAGE}/fullchain.pem", issued.certificate, mode=0o644)
    machine.write(f"{LINEAGE}/privkey.pem", issued.key, mode=0o600)


@contextlib.contextmanager
def held_flow(tunnel: Tunnel) -> Iterator[None]:
    """A flow that must live as long as this."""
    with tunnel.connect("echo") as sock:
        for data in (b"before", b"after"):
            sock.sendall(data)
            assert sock.recv(100) == data
            if data == b"before":
                yield


def test_a_renewed_certificate_is_taken_by_a_reload(
    make_tunnel: MakeTunnel, authority: Authority
) -> None:
    old, new = authority.issue(ENDPOINT_ADDRESS), authority.issue(ENDPOINT_ADDRESS)
    tunnel = https_tunnel(make_tunnel, authority, old.both).start()
    tunnel.endpoint.wait_log(rf"listening for offers on {ENDPOINT_ADDRESS}:\d+ by HTTPS")
    tunnel.endpoint.wait_log(rf"TLS certificate \S+tls\.pem, for {ENDPOINT_ADDRESS}, until ")
    assert served(tunnel) == old.certificate
    with held_flow(tunnel):
        tunnel.homes["endpoint"].put("tls.pem", new.both)
        assert served(tunnel) == old.certificate  # before it is told
        tunnel.endpoint.reload()
        wait_until(lambda: served(tunnel) == new.certificate, "the new certificate")

        # Files that do not fit: all of the reload is refused, and what was there goes on.
        log = len(tunnel.endpoint.log_text())
        tunnel.homes["endpoint"].put("tls.pem", new.certificate + old.key)
        tunnel.write("endpoint", {"drain_timeout": 6})
        tunnel.endpoint.signal(signal.SIGHUP)
        tunnel.endpoint.wait_log("signaling.tls_key: .* is not the key of the first", after=log)
        tunnel.endpoint.wait_log("not reloaded: the old configuration stays", after=log)
        assert served(tunnel) == new.certificate
    assert "flows wait for the next link" not in tunnel.gateway.log_text()

    # And it is good for more than the handshake: the gateway dials by it.
    tunnel.gateway.stop()
    tunnel.start_gateway()
    tunnel.wait_linked()
    with held_flow(tunnel):
        pass


def test_a_certificate_that_does_not_verify_is_one_clear_line(
    make_tunnel: MakeTunnel, authority: Authority
) -> None:
    stranger = Authority("Another Root")
    tunnel = https_tunnel(make_tunnel, stranger, authority.issue(ENDPOINT_ADDRESS).both)
    tunnel.start_endpoint()
    tunnel.start_gateway()
    tunnel.gateway.wait_log(
        r"cannot reach office: the certificate of https://\S+ does not verify: it is from an "
        r"authority that is not trusted here; name that as tls_ca.*; trying again in"
    )
    wait_until(
        lambda: any(
            "does not verify" in (link.get("detail") or "")
            for link in tunnel.gateway.control("status")["links"]
        ),
        "the same in the status",
    )
    assert not tunnel.linked()
    # It is read for each attempt: nobody needs to be told that it is another now.
    tunnel.homes["gateway"].put("ca.pem", authority.certificate)
    tunnel.wait_linked()


def test_an_expired_certificate_is_served_with_a_warning_and_refused(
    make_tunnel: MakeTunnel, authority: Authority
) -> None:
    expired = authority.issue(ENDPOINT_ADDRESS, valid=(-2 * DAY, -DAY))
    tunnel = https_tunnel(make_tunnel, authority, expired.both)
    tunnel.start_endpoint()
    tunnel.endpoint.wait_log(r"WARNING.*TLS certificate \S+tls\.pem: it expired at .* UTC")
    tunnel.start_gateway()
    tunnel.gateway.wait_log(r"does not verify: it has expired; renew it at the endpoint")
    tunnel.homes["endpoint"].put("tls.pem", authority.issue(ENDPOINT_ADDRESS).both)
    tunnel.endpoint.reload()
    tunnel.wait_linked()


def test_http_to_an_https_listener(make_tunnel: MakeTunnel, authority: Authority) -> None:
    tunnel = https_tunnel(make_tunnel, authority, authority.issue(ENDPOINT_ADDRESS).both)
    (peer,) = tunnel.gateway_settings["peers"]
    plain = {**peer, "url": peer["url"].replace("https:", "http:")}
    del plain["tls_ca"]
    tunnel.write("gateway", {"peers": [plain]})
    tunnel.start_endpoint()
    tunnel.start_gateway()
    tunnel.gateway.wait_log("cannot reach office: .* the url must begin with https://")
    # By a reload, the gateway finds its way.
    tunnel.write("gateway", {"peers": [peer]})
    tunnel.gateway.reload()
    tunnel.wait_linked()


def test_https_is_switched_on_by_a_reload_and_flows_go_on(
    make_tunnel: MakeTunnel, authority: Authority
) -> None:
    tunnel = make_tunnel()
    with tunnel.connect("echo", timeout=120) as sock:
        tunnel.homes["endpoint"].put("tls.pem", authority.issue(ENDPOINT_ADDRESS).both)
        tunnel.write("endpoint", {"signaling": {"tls_certificate": "tls.pem"}})
        answer = tunnel.endpoint.control("reload", timeout=60)
        assert answer["replacing"] == ["signaling.tls_certificate"]
        assert answer["needs_restart"] == []
        tunnel.endpoint.wait_log(r"listening for offers on .* by HTTPS", timeout=60)
        (peer,) = tunnel.gateway_settings["peers"]
        secure = {"url": peer["url"].replace("http:", "https:"), "tls_ca": "ca.pem"}
        tunnel.homes["gateway"].put("ca.pem", authority.certificate)
        tunnel.write("gateway", {"peers": [{**peer, **secure}]})
        tunnel.gateway.reload()
        sock.sendall(b"still here")
        assert sock.recv(100) == b"still here"
        tunnel.wait_linked()


@pytest.fixture
def hook() -> str:
    """The script for certbot that the documentation shows."""
    text = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    found = re.search(
        r"^```sh\n(#!/bin/sh\n.*?RENEWED_LINEAGE.*?)^```\n", text, re.DOTALL | re.MULTILINE
    )
    assert found
    return found[1]


def test_certbots_files_by_the_documented_hook(
    make_tunnel: MakeTunnel, authority: Authority, hook: str
) -> None:
    old, new = authority.issue(ENDPOINT_ADDRESS), authority.issue(ENDPOINT_ADDRESS)
    tunnel = https_tunnel(make_tunnel, authority, "not this one")
    machine = machine_of(tunnel)
    name = tunnel.homes["endpoint"].instance
    hook = hook.replace("/endpoint.pem", "/tls.pem").replace("@endpoint", f"@{name}")
    machine.write("/usr/local/sbin/hook", hook, mode=0o755)

    def renew(issued: Issued, lineage: str = LINEAGE) -> None:
        put_lineage(machine, issued)
        machine.sh(f"RENEWED_LINEAGE={lineage} /usr/local/sbin/hook")

    renew(old)  # before there is an instance
    tunnel.start()
    assert served(tunnel) == old.certificate
    renew(new, LINEAGE.replace("office", "another"))
    assert served(tunnel) == old.certificate
    with held_flow(tunnel):
        renew(new)
        wait_until(lambda: served(tunnel) == new.certificate, "the new certificate")
    assert machine.sh("stat -c '%a %U %G' /etc/socks-tunnel/tls.pem") == "640 root socks-tunnel"


@pytest.mark.parametrize("way", ["credentials", "group"])
def test_a_key_that_is_not_copied(make_tunnel: MakeTunnel, authority: Authority, way: str) -> None:
    """Read by systemd for the unit, or by the unit as a member of the group ssl-cert."""
    tunnel = https_tunnel(make_tunnel, authority, "not this one")
    machine = machine_of(tunnel)
    unit = f"socks-tunnel@{tunnel.homes['endpoint'].instance}.service"
    issued = authority.issue(ENDPOINT_ADDRESS)
    if way == "credentials":
        put_lineage(machine, issued)
        drop_in = (
            f"LoadCredential=fullchain.pem:{LINEAGE}/fullchain.pem\n"
            f"LoadCredential=privkey.pem:{LINEAGE}/privkey.pem\n"
        )
        files = [f"/run/credentials/{unit}/{name}.pem" for name in ("fullchain", "privkey")]
    else:
        machine.sh(
            "groupadd --force --system ssl-cert && install -d -m 710 -g ssl-cert /etc/ssl/private"
        )
        drop_in = "SupplementaryGroups=ssl-cert\n"
        files = ["/etc/ssl/office.pem", "/etc/ssl/private/office.key"]
        machine.write(files[0], issued.certificate)
        machine.write(files[1], issued.key, mode=0o640, owner="root:ssl-cert")
    machine.write(f"/etc/systemd/system/{unit}.d/tls.conf", f"[Service]\n{drop_in}")
    machine.sh("systemctl daemon-reload")
    signaling = {"tls_certificate": files[0], "tls_key": files[1]}
    tunnel.write("endpoint", {"signaling": signaling})
    tunnel.start()
    assert served(tunnel) == issued.certificate
    tunnel.endpoint.reload()
    tunnel.endpoint.wait_log("reloaded")
    assert served(tunnel) == issued.certificate


def test_the_systems_authorities(make_tunnel: MakeTunnel, tmp_path: Path) -> None:
    """As update-ca-certificates installs them: under the hash of their name."""
    openssl = need("openssl")
    authority = Authority("Root of the System")
    tunnel = https_tunnel(make_tunnel, authority, authority.issue(ENDPOINT_ADDRESS).both)
    machine_of(tunnel)
    home = tunnel.homes["gateway"]
    assert isinstance(home, UnitHome)
    (peer,) = tunnel.gateway_settings["peers"]
    tunnel.write("gateway", {"peers": [{k: v for k, v in peer.items() if k != "tls_ca"}]})
    tunnel.start_endpoint()
    tunnel.start_gateway()
    tunnel.gateway.wait_log("is from an authority that is not trusted here")
    (tmp_path / "ca.pem").write_text(authority.certificate)
    done = subprocess.run(
        [openssl, "x509", "-in", tmp_path / "ca.pem", "-noout", "-subject_hash"],
        check=True,
        capture_output=True,
        text=True,
    )
    home.machine.sh("mkdir -p /usr/lib/ssl/certs")
    home.machine.write(f"/usr/lib/ssl/certs/{done.stdout.strip()}.0", authority.certificate)
    tunnel.wait_linked()


@pytest.mark.parametrize("mode", [0o640, 0o644], ids=oct)
def test_who_may_read_the_key(make_tunnel: MakeTunnel, authority: Authority, mode: int) -> None:
    """The group may; if others may, the unit does not start, and is not tried again."""
    tunnel = https_tunnel(make_tunnel, authority, authority.issue(ENDPOINT_ADDRESS).both)
    path = tunnel.homes["endpoint"].put("tls.pem", authority.issue(ENDPOINT_ADDRESS).both)
    path.chmod(mode)
    if mode == 0o640:
        tunnel.start_endpoint()
        return
    endpoint = tunnel.homes["endpoint"].start(tunnel.endpoint_settings)
    try:
        assert endpoint.wait() == 78
        endpoint.wait_log("tls.pem has mode 0644: others may use the key")
    finally:
        endpoint.kill()
