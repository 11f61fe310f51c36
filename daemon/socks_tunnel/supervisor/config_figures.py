"""Metrics about the configuration: which one is in force, since when, and what expires."""

import hashlib
from collections.abc import Iterable
from typing import Final, Protocol

from socks_tunnel.ops.metrics import Metrics

HASH_BYTES: Final = 6
"""Bytes of a SHA-256 that the metric shows: as many as a float holds exactly."""


class IceServerLogin(Protocol):
    """An ICE server of the configuration."""

    @property
    def username(self) -> str | None:
        """The user name; that of a time-limited credential begins with its end."""


def config_hash(config: object) -> int:
    """Returns a number that differs for different configurations.

    It is computed from the text form of the configuration, which has no passwords.
    """
    return int.from_bytes(hashlib.sha256(repr(config).encode()).digest()[:HASH_BYTES], "big")


def credential_expiry(servers: Iterable[IceServerLogin]) -> int | None:
    """Returns the Unix time at which the first credential of TURN servers expires.

    The user name of a time-limited credential is `TIME:USER` (draft-uberti-behave-turn-rest-00
    section 2.2, as coturn's `use-auth-secret` has it). None if no credential is limited.
    """
    ends = [
        int(end)
        for server in servers
        if server.username is not None
        and (end := server.username.partition(":")[0]).isdecimal()
        and end.isascii()
        and ":" in server.username
        and len(end) <= 12
    ]
    return min(ends, default=None)


class ConfigFigures:
    """Keeps the metrics of the configuration."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def started(self, number: int, now: float, servers: Iterable[IceServerLogin]) -> None:
        """Takes the configuration of the start. `now` is Unix time."""
        self._in_force(number, now, servers)

    def reloaded(self, number: int, now: float, servers: Iterable[IceServerLogin]) -> None:
        """Takes the configuration of a reload."""
        self._metrics.config_reloads_total.labels("success").inc()
        self._in_force(number, now, servers)

    def failed(self) -> None:
        """Counts a reload that has changed nothing."""
        self._metrics.config_reloads_total.labels("failure").inc()
        self._metrics.config_reload_ok.set(0)

    def _in_force(self, number: int, now: float, servers: Iterable[IceServerLogin]) -> None:
        metrics = self._metrics
        metrics.config_reload_ok.set(1)
        metrics.config_hash.set(number)
        metrics.config_loaded_timestamp_seconds.set(now)
        expiry = credential_expiry(servers)
        if expiry is not None:
            metrics.ice_credential_expires_seconds.labels("turn").set(expiry)
        else:
            metrics.ice_credential_expires_seconds.series.clear()
