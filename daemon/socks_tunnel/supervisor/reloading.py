"""Puts a changed configuration into force while an instance runs.

The file is read in another process, and the settings of the workers are made in a thread, so that
the event loop is not blocked. The old configuration holds in all its parts until everything has
been read and checked::

    file --read--> checks --> keys of peers, own key, audit file --> in force, everywhere at once
                     |                    |
                     +--- ConfigError ----+--> nothing has changed

supervisor/reload.py decides which settings a reload can change.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any, Final

from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.for_workers import dump
from socks_tunnel.config.reading import read as read_configuration
from socks_tunnel.config.settings import Config
from socks_tunnel.ops import audit_file
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.ops.tasks import short_turns
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor.config_figures import ConfigFigures, config_hash
from socks_tunnel.supervisor.control import ControlError
from socks_tunnel.supervisor.enroller import Enroller
from socks_tunnel.supervisor.links import Links
from socks_tunnel.supervisor.loading import load_identity
from socks_tunnel.supervisor.problems import StartError
from socks_tunnel.supervisor.reload import merge

READ_TIMEOUT: Final = 30.0
"""Seconds for reading the TLS files."""


class Reloader:
    """Reads configurations and puts them into force.

    `running` returns the configuration in force. `apply` puts another one into force, together with
    the workers' settings made from it. `check` raises :class:`StartError` if these are too long for
    a frame. `enroller` is None on a gateway.
    """

    def __init__(
        self,
        *,
        running: Callable[[], Config],
        apply: Callable[[Config, dict[str, Any]], None],
        check: Callable[[Config], None],
        links: Links,
        enroller: Enroller | None,
        metrics: Metrics,
    ) -> None:
        self.lock = asyncio.Lock()
        """Held while the configuration changes, and while it must not change."""
        self._running = running
        self._apply = apply
        self._check = check
        self._links = links
        self._enroller = enroller
        self._figures = ConfigFigures(metrics)

    def started(self) -> None:
        """Exports the configuration of the start as the one in force."""
        config = self._running()
        self._figures.started(config_hash(config), time.time(), config.ice.servers)

    async def reload(self) -> tuple[Config, list[str]]:
        """Reads the configuration again and puts it into force. The caller holds :attr:`lock`.

        Returns it, and the keys whose changes wait for a restart. Raises :class:`ConfigError`, and
        :class:`ControlError` if no process can be started to read it. Then nothing has changed.
        """
        try:
            with short_turns():
                read, base, config, waiting, fields = await asyncio.to_thread(self._read)
                number = await asyncio.to_thread(config_hash, config)
            identity = _identity(config)
            await _prepare(self._links, read)
            _use_audit_file(config)
            if self._enroller is not None:
                self._enroller.use(base)
            self._apply(config, fields)
            if not self._links.renew(identity):
                waiting.append("identity")
            self._figures.reloaded(number, time.time(), config.ice.servers)
        except ConfigError:
            self._figures.failed()
            raise
        return config, waiting

    async def apply_members(self) -> None:
        """Puts the present members into force: hosts that have joined and have not left."""
        assert self._enroller is not None
        async with self.lock:
            config = self._enroller.extended()
            with short_turns():
                fields = await asyncio.to_thread(dump, config)
            self._apply(config, fields)

    def _read(self) -> tuple[Config, Config, Config, list[str], dict[str, Any]]:
        """Reads the file again. Runs in a thread, which mostly waits for the reading process.

        Returns the configuration as it was read, its part that a reload changes, the same with the
        hosts that have joined, the keys that wait for a restart, and the workers' settings.
        """
        running = self._running()
        try:
            read = read_configuration(running.source)
        except OSError as error:
            raise ControlError(
                f"no process can be started to read the configuration: {error}"
            ) from None
        base, waiting = merge(running, read)
        config = base if self._enroller is None else self._enroller.extend(base)
        try:
            self._check(config)
        except StartError as error:
            raise ConfigError([Problem(config.source, None, "", str(error))]) from None
        return read, base, config, waiting, dump(config)


async def _prepare(links: Links, config: Config) -> None:
    """Reads the TLS files, without blocking the loop. Raises :class:`ConfigError`."""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            await links.prepare(config)
    except TimeoutError:
        message = (
            f"the TLS files could not be read within {READ_TIMEOUT:g} s; "
            "their file system does not answer"
        )
        raise ConfigError([Problem(config.source, None, "signaling", message)]) from None


def _identity(config: Config) -> PrivateIdentity:
    """Returns the private key. Raises :class:`ConfigError`."""
    try:
        return load_identity(config)
    except StartError as error:
        problem = Problem(config.source, None, "identity.private_key_file", str(error))
        raise ConfigError([problem]) from None


def _use_audit_file(config: Config) -> None:
    """Writes audit records to the configured file from now on. Raises :class:`ConfigError`."""
    try:
        audit_file.use(str(config.audit.file or ""), "supervisor")
    except OSError as error:
        message = f"{config.audit.file} cannot be written: {error.strerror}"
        raise ConfigError([Problem(config.source, None, "audit.file", message)]) from None
