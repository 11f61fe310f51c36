"""Both sides behind symmetric NATs, no open port, and no TURN server in their configurations."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.hosts import why_no_namespaces
from support.nat import SERVICES, NatSite
from support.processes import wait_until
from support.tunnels import Tunnel

SECRET = "north by north-west"
RENDEZVOUS = f"ws://{SERVICES}:8443/"

pytestmark = pytest.mark.timeout(
    400
)  # on a loaded machine; the world is made within the first test


@pytest.fixture(scope="module")
def world() -> Iterator[NatSite]:
    """The small internet, with coturn that checks logins by a secret."""
    if reason := why_no_namespaces():
        pytest.skip(reason)
    site = NatSite()
    try:
        site.world.near.become("symmetric")
        site.world.far.become("symmetric")
        with site.turn("use-auth-secret", f"static-auth-secret={SECRET}"):
            yield site
    finally:
        site.close()


def tunnel_by_rendezvous(world: NatSite) -> Tunnel:
    tunnel = world.nat_tunnel({})
    peer = tunnel.gateway_settings["peers"][0]
    del peer["url"]
    peer["rendezvous"] = RENDEZVOUS
    tunnel.endpoint_settings["signaling"] = {"rendezvous": RENDEZVOUS}
    return tunnel


def configuration(directory: Path, tunnel: Tunnel, secret: str) -> Path:
    (directory / "turn.secret").write_text(secret)
    keys = {
        "office": tunnel.gateway_settings["peers"][0]["public_key"],
        "laptop-17": tunnel.endpoint_settings["peers"][0]["public_key"],
    }
    path = directory / "rendezvous.toml"
    path.write_text(
        'listen = "0.0.0.0:8443"\n'
        + "".join(f'[[keys]]\nname = "{n}"\npublic_key = "{k}"\n' for n, k in keys.items())
        + f'[turn]\nservers = [{{ urls = "turn:{SERVICES}" }}]\nsecret_file = "turn.secret"\n'
    )
    return path


def kinds_up(tunnel: Tunnel) -> list[str]:
    links = tunnel.gateway.control("status")["links"]
    return [row["path_kind"] for row in links if row["state"] == "up"]


@pytest.mark.netns
def test_the_service_hands_out_logins_for_turn(
    world: NatSite, report_logs: Callable[[Tunnel], None]
) -> None:
    tunnel = tunnel_by_rendezvous(world)
    report_logs(tunnel)
    config = configuration(world.directory, tunnel, SECRET)
    service = (sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", config)
    with world.serving(*service, tcp=[8443]):
        try:
            tunnel.start_endpoint()
            tunnel.start_gateway()
            tunnel.wait_linked()
            # Two are up while one takes over from another.
            wait_until(lambda: kinds_up(tunnel) == ["relay"], "one relayed link", timeout=90)
            with tunnel.connect("http") as sock:
                sock.sendall(b"GET /bytes/1000000 HTTP/1.0\r\n\r\n")
                while sock.recv(65_536):
                    pass
        finally:
            tunnel.stop()


@pytest.mark.netns
def test_a_login_that_the_turn_server_refuses_is_named(
    world: NatSite, report_logs: Callable[[Tunnel], None]
) -> None:
    tunnel = tunnel_by_rendezvous(world)
    report_logs(tunnel)
    config = configuration(world.directory, tunnel, "another secret of its own")
    service = (sys.executable, "-m", "socks_tunnel", "rendezvous", "--config", config)
    with world.serving(*service, tcp=[8443]):
        try:
            tunnel.start_gateway().wait_log(
                r"it refuses the user name .* or the credential \(401\)"
            )
        finally:
            tunnel.stop()
