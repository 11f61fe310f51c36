"""Configurations for tests that need no file."""

from pathlib import Path
from typing import Any

from socks_tunnel.config import models
from socks_tunnel.config.plain import plain
from socks_tunnel.config.settings import Config


def checked(fields: dict[str, Any], directory: Path = Path("/")) -> Config:
    """The configuration that a file in `directory` with these tables makes; `source` is named."""
    return plain(models.Config.model_validate(fields, context={"directory": directory}))
