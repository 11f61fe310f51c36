"""Converts the models that check a configuration into the plain values that the program uses."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from socks_tunnel.config import models, settings


def plain(config: models.Config) -> settings.Config:
    """Returns the same configuration as plain values, each table as its namesake in `settings`."""
    made: settings.Config = _plain(config)
    return made


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        namesake = getattr(settings, type(value).__name__)
        return namesake(**{name: _plain(getattr(value, name)) for name in type(value).model_fields})
    # A HostPort is a tuple too, of plain values.
    if type(value) is tuple:
        return tuple(map(_plain, value))
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return value
