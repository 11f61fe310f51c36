"""Reads what an instance needs at its start besides the configuration: its key, and who has joined.

If these cannot be read, the instance cannot start.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path

from socks_tunnel.config import paths
from socks_tunnel.config.settings import Config
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor.enroller import Enroller
from socks_tunnel.supervisor.problems import EXIT_CANNOT_CREATE, EXIT_CONFIG, StartError


def load_identity(config: Config) -> PrivateIdentity:
    """Returns the private key. Raises :class:`StartError` with the file and the reason."""
    path = config.identity.private_key_file
    assert path is not None, "the loader finds one"
    try:
        return PrivateIdentity.load(path)
    except (OSError, ValueError) as error:
        raise StartError(f"{path}: {error}", EXIT_CONFIG) from None


def load_enroller(
    config: Config,
    directory: Path,
    identity: PrivateIdentity,
    apply: Callable[[], Awaitable[None]],
    metrics: Metrics,
) -> Enroller:
    """Returns the enroller of an endpoint. Raises :class:`StartError`.

    `apply` is called when a host has joined or left.
    """
    try:
        return Enroller(paths.state_directory(directory), identity, config, apply, metrics)
    except ValueError as error:
        raise StartError(f"{config.source}: {error}", EXIT_CONFIG) from None
    except OSError as error:
        raise StartError(
            f"the list of hosts that have joined cannot be read: {error}", EXIT_CANNOT_CREATE
        ) from None
