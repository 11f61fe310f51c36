"""The annotated configurations of the three ways: direct, rendezvous, and HTTPS only."""

import re
from pathlib import Path

import pytest

from socks_tunnel.config.loader import load
from socks_tunnel.config.rendezvous import load_rendezvous

WAYS = Path(__file__).parents[3] / "etc" / "socks-tunnel" / "ways"
KEY = "A" * 42 + "E="


def written(name: str, directory: Path) -> Path:
    """Returns a copy with a key in it, beside the files that it names."""
    text = re.sub('"PUT .* KEY HERE"', f'"{KEY}"', (WAYS / name).read_text("utf-8"))
    for key in ("gateway.key", "endpoint.key"):
        (directory / key).touch(mode=0o600)
    (directory / "turn.secret").write_text("north by north-west")
    path = directory / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("way", ["direct", "rendezvous", "https-only"])
@pytest.mark.parametrize("role", ["gateway", "endpoint"])
def test_each_way_has_a_usable_configuration_for_each_side(
    way: str, role: str, tmp_path: Path
) -> None:
    config = load(written(f"{way}-{role}.toml", tmp_path))
    assert config.role == role
    inbound = config.signaling is not None and config.signaling.listen is not None
    assert inbound == (way == "direct" and role == "endpoint"), "only that one has an open port"
    assert (config.ice.proxy is not None) == (way == "https-only")


def test_the_service_of_the_other_two(tmp_path: Path) -> None:
    config = load_rendezvous(written("rendezvous-service.toml", tmp_path))
    assert config.turn is not None
    assert any(url.startswith("turns:") for server in config.turn.servers for url in server.urls)


def test_there_are_no_others() -> None:
    assert len(list(WAYS.iterdir())) == 7
