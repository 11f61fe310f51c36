"""Converts the configuration of the service for its parts."""

from socks_tunnel.config.rendezvous import RendezvousConfig, read_turn_secret
from socks_tunnel.rendezvous.turn import TurnLogins
from socks_tunnel.signaling.identity import parse_public_key


def listed_keys(config: RendezvousConfig) -> dict[bytes, str]:
    """Returns the names of the listed keys."""
    return {parse_public_key(key.public_key): key.name for key in config.keys}


def turn_logins(config: RendezvousConfig) -> TurnLogins | None:
    """Returns the maker of logins for the configured TURN servers; None if there are none.

    Raises :class:`ValueError` with a sentence if the secret cannot be read.
    """
    turn = config.turn
    if turn is None:
        return None
    return TurnLogins([server.urls for server in turn.servers], read_turn_secret(turn.secret_file))
