"""The plain settings say the same as the models that check them."""

import pickle
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from socks_tunnel.config import models, settings
from socks_tunnel.protocol.addresses import HostPort
from support.configs import checked

KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="

FULL: dict[str, Any] = {
    "role": "gateway",
    "source": "/etc/socks-tunnel/office.toml",
    "identity": {"private_key_file": "office.key"},
    "users": {"alice": "hash"},
    "signaling": {"listen": "unix:/run/x.sock"},
    "peers": [{"name": "office", "public_key": KEY, "url": "http://10.0.0.1:1/"}],
    "forwards": [{"listen": "udp://127.0.0.1:53", "target": "10.0.0.53:53"}],
    "policy": {"allowed_hosts": ["10.0.0.0/8"], "allowed_ports": [22]},
    "policies": {"some": {"denied_hosts": "10.1.0.0/16\n10.2.0.0/16"}},
    "ice": {"servers": [{"urls": "turn:192.0.2.1", "username": "u", "credential": "secret"}]},
}


def tables() -> list[str]:
    """The models that stand in a loaded configuration."""
    found: list[type[BaseModel]] = [models.Config]
    for model in found:
        for entry in model.model_fields.values():
            found += [each for each in models_in(entry.annotation) if each not in found]
    return [model.__name__ for model in found]


def models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in typing.get_args(annotation) for model in models_in(each)]


@pytest.mark.parametrize("name", tables())
def test_each_model_has_a_namesake_with_the_same_settings(name: str) -> None:
    model, namesake = getattr(models, name), getattr(settings, name)
    assert is_dataclass(namesake)
    assert {entry.name for entry in fields(namesake)} == set(model.model_fields)


@pytest.mark.parametrize("name", ["Limits", "Targets"])
def test_defaults_that_are_written_twice_are_equal(name: str) -> None:
    model, namesake = getattr(models, name)(), getattr(settings, name)()
    assert all(
        getattr(model, entry.name) == getattr(namesake, entry.name) for entry in fields(namesake)
    )


def test_values_are_plain_all_the_way_down() -> None:
    config = checked(FULL, Path("/etc/socks-tunnel"))
    assert b"pydantic" not in pickle.dumps(config)
    assert config.identity.private_key_file == Path("/etc/socks-tunnel/office.key")
    assert config.peers[0].url == "http://10.0.0.1:1/"
    assert config.forwards[0].protocol == "udp"
    assert config.forwards[0].address == HostPort("127.0.0.1", 53)
    assert config.forwards[0].target == HostPort("10.0.0.53", 53)
    assert config.policies["some"].denied_hosts == "10.1.0.0/16\n10.2.0.0/16"
    assert config.ice.servers[0].credential == "secret"
    assert pickle.loads(pickle.dumps(config)) == config


def test_secrets_are_not_shown() -> None:
    shown = repr(checked(FULL, Path("/etc/socks-tunnel")))
    assert "secret" not in shown
    assert "alice" not in shown
