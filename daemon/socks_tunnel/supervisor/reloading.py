"""How another configuration gets into force while an instance runs.

The file is read in another process, and the settings of the workers are made in a thread, because
the event loop must go on with its turns meanwhile. Until everything has been read and checked, the
old configuration holds in all its parts::

    file --read--> checks --> keys of peers, own key, audit file --> in force, everywhere at once
                     |                    |
                     +--- ConfigError ----+--> nothing has changed

Which settings a reload changes at all, supervisor/reload.py decides.
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
"""Seconds that the files of TLS have to be read."""


class Reloader:
    """Reads configurations and puts them into force.

    `running` returns the configuration in force, and `apply` puts another one into force, with the
    workers' settings that were made of it. `check` raises :class:`StartError` for what workers
    cannot be told. `enroller` is an endpoint's.
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
        """Held by whoever changes the configuration, or needs it to stay as it is."""
        self._running = running
        self._apply = apply
        self._check = check
        self._links = links
        self._enroller = enroller
        self._figures = ConfigFigures(metrics)

    def started(self) -> None:
        """Counts the configuration of the start as the one in force."""
        config = self._running()
        self._figures.started(config_hash(config), time.time(), config.ice.servers)

    async def reload(self) -> tuple[Config, list[str]]:
        """Reads the configuration again and puts it into force, under the lock.

        Returns it, and the keys whose changes wait for a restart. Raises :class:`ConfigError`, and
        :class:`ControlError` if no process can be started; nothing has changed then.
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
        """Has the peers hold that have joined meanwhile, and no others."""
        assert self._enroller is not None
        async with self.lock:
            config = self._enroller.extended()
            with short_turns():
                fields = await asyncio.to_thread(dump, config)
            self._apply(config, fields)

    def _read(self) -> tuple[Config, Config, Config, list[str], dict[str, Any]]:
        """Reads the file again, in a thread, which mostly waits for the process that reads.

        Returns the file, what is to hold of it, the same with the hosts that have joined, what
        waits for a restart, and the workers' settings.
        """
        running = self._running()
        try:
            read = read_configuration(running.source)
        except OSError as error:
            raise ControlError(f"no process can be started that reads: {error}") from None
        base, waiting = merge(running, read)
        config = base if self._enroller is None else self._enroller.extend(base)
        try:
            self._check(config)
        except StartError as error:
            raise ConfigError([Problem(config.source, None, "", str(error))]) from None
        return read, base, config, waiting, dump(config)


async def _prepare(links: Links, config: Config) -> None:
    """Has the TLS files read. Raises :class:`ConfigError`."""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            await links.prepare(config)
    except TimeoutError:
        message = (
            f"the files of TLS were not read within {READ_TIMEOUT:g} s; they are on a file system "
            "that does not answer"
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
