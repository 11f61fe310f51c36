"""A new pair of configurations."""

from pathlib import Path

import pytest

from socks_tunnel.config import pairing
from socks_tunnel.config.loader import load
from socks_tunnel.config.pairing import pair, signaling_address
from socks_tunnel.protocol.addresses import HostPort

ONE = "A" * 42 + "E="
TWO = "A" * 42 + "I="


@pytest.mark.parametrize(
    ("url", "listen", "loopback"),
    [
        ("http://10.77.0.2:8765/", "0.0.0.0:8765", None),
        ("http://endpoint.example.net:8765", "0.0.0.0:8765", None),
        ("http://endpoint.example.net/", "0.0.0.0:80", None),
        ("http://[2001:db8::1]:8765/", "[::]:8765", None),
        ("http://127.0.0.1:8765/", "127.0.0.1:8765", "127.0.0.1"),
        ("http://localhost:8765/", "127.0.0.1:8765", "127.0.0.1"),
        ("http://[::1]:8765/", "[::1]:8765", "::1"),
        ("unix:/run/signal.sock", "unix:/run/signal.sock", "127.0.0.1"),
        ("unix:signal.sock", "unix:/base/signal.sock", "127.0.0.1"),
    ],
)
def test_the_endpoint_listens_where_the_gateway_looks(
    url: str, listen: str, loopback: str | None
) -> None:
    address = signaling_address(url, Path("/base"))
    assert (address.listen, address.loopback) == (listen, loopback)


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("10.77.0.2:8765", "is none of"),
        ("https://10.77.0.2/", "https needs a certificate"),
        ("", "is none of"),
        ("unix:", "the path is empty"),
    ],
)
def test_urls_that_no_endpoint_can_serve(url: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        signaling_address(url, Path("/base"))


@pytest.mark.parametrize("url", ["http://10.77.0.2:8765/", "http://[::1]:1/", 'unix:/a "b".sock'])
def test_both_configurations_load_and_fit(tmp_path: Path, url: str) -> None:
    texts = pair(signaling_address(url, tmp_path), gateway_key=ONE, endpoint_key=TWO)
    for name, text in texts._asdict().items():
        (tmp_path / f"{name}.toml").write_text(text)
    for key in (pairing.GATEWAY_KEY, pairing.ENDPOINT_KEY):
        (tmp_path / key).touch(mode=0o600)

    gateway, endpoint = load(tmp_path / "gateway.toml"), load(tmp_path / "endpoint.toml")

    assert (gateway.role, endpoint.role) == ("gateway", "endpoint")
    assert (gateway.peers[0].public_key, endpoint.peers[0].public_key) == (TWO, ONE)
    assert gateway.peers[0].url == url
    assert gateway.identity.private_key_file == tmp_path / "gateway.key"
    assert endpoint.identity.private_key_file == tmp_path / "endpoint.key"
    assert gateway.socks.listen == (HostPort("127.0.0.1", 1080),)
    assert gateway.metrics.listen != endpoint.metrics.listen
    assert gateway.ice == endpoint.ice
    assert endpoint.policy is not None
