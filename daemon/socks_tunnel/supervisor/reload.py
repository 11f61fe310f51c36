"""Decides which settings a reload changes: makes one configuration of the running and the read one.

It needs neither files nor an event loop.
"""

from dataclasses import fields, replace
from typing import Any, Final

from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.settings import Config, Signaling, Socks

RELOADED: Final = frozenset(
    {
        "audit",
        "drain_timeout",
        "ice",
        "include",
        "join",
        "limits",
        "log",
        "peers",
        "policies",
        "policy",
        "policy_file",
        "resume_timeout",
        "routes",
        "targets",
        "transport",
        "udp_filtering",
        "users",
        "warnings",
    }
)
"""Tables and settings that a reload changes. It also changes `[socks]` except its listeners, and
the certificate of a listener that serves HTTPS already."""

_BOUND_AT_START: Final = frozenset({"listen", "allow_remote_clients"})

BY_REPLACING: Final = frozenset(
    {
        "forwards",
        "identity",
        "join.group",
        "log.format",
        "metrics",
        "signaling",
        "signaling.listen",
        "signaling.rendezvous",
        "signaling.tls_ca",
        "signaling.tls_certificate",
        "signaling.tls_key",
        "socks.allow_remote_clients",
        "socks.listen",
        "workers",
    }
)
"""Tables and settings that take effect when the program is replaced in place, which keeps all
flows."""


def merge(running: Config, read: Config) -> tuple[Config, list[str]]:
    """Returns the configuration to put into force, and the keys whose changes need a restart.

    Raises :class:`ConfigError` if `read` is for another role, which would be another instance.
    """
    if read.role != running.role:
        message = f"is {read.role!r} now, but the running instance is a {running.role}"
        raise ConfigError([Problem(read.source, None, "role", message)])
    changed = {name: getattr(read, name) for name in RELOADED}
    waiting = [
        name
        for name in _names(Config)
        if name not in RELOADED
        and name not in {"signaling", "socks", "source"}
        and getattr(read, name) != getattr(running, name)
    ]
    kept = {name: getattr(running.socks, name) for name in _BOUND_AT_START}
    waiting += [
        f"socks.{name}"
        for name in _names(Socks)
        if name in _BOUND_AT_START and getattr(read.socks, name) != kept[name]
    ]
    changed["socks"] = replace(read.socks, **kept)
    changed["signaling"], kept_back = _merge_signaling(running.signaling, read.signaling)
    waiting += kept_back
    if read.log.format != running.log.format:
        waiting.append("log.format")
        changed["log"] = replace(read.log, format=running.log.format)
    if read.join.group != running.join.group:
        waiting.append("join.group")
        changed["join"] = replace(read.join, group=running.join.group)
    return replace(running, **changed), sorted(waiting)


def _merge_signaling(
    running: Signaling | None, read: Signaling | None
) -> tuple[Signaling | None, list[str]]:
    """Returns the table to put into force, and its keys that wait for a restart.

    A listener does not change between HTTP and HTTPS.
    """
    if running is None or read is None:
        return running, [] if running == read else ["signaling"]
    certificates = (running.tls_certificate, read.tls_certificate)
    if None in certificates:
        merged = running
    else:
        merged = replace(running, tls_certificate=read.tls_certificate, tls_key=read.tls_key)
    return merged, [
        f"signaling.{name}"
        for name in _names(Signaling)
        if getattr(merged, name) != getattr(read, name)
    ]


def _names(table: type[Any]) -> list[str]:
    return [field.name for field in fields(table)]
