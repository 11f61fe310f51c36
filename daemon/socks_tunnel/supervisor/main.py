"""`socks-tunnel run`: what happens before and after the event loop, and the exit status."""

import asyncio
import errno
import fcntl
import logging
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import uvloop

from socks_tunnel.config import paths
from socks_tunnel.config.errors import ConfigError, Problem
from socks_tunnel.config.reading import Reading
from socks_tunnel.config.settings import Config
from socks_tunnel.ops import audit_file, host_checks
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops import metrics as ops_metrics
from socks_tunnel.ops.findings import Finding
from socks_tunnel.ops.process import die_with_parent, raise_descriptor_limit
from socks_tunnel.peer.quiet import set_library_log_level
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.protocol.policies import build_policies
from socks_tunnel.protocol.settings import LimitSettings
from socks_tunnel.supervisor import handover
from socks_tunnel.supervisor.environment import PARENT_VARIABLE
from socks_tunnel.supervisor.instance import Instance
from socks_tunnel.supervisor.problems import (
    EXIT_BUG,
    EXIT_CANNOT_CREATE,
    EXIT_CONFIG,
    StartError,
)

_log = logging.getLogger(__name__)

DESCRIPTORS_PER_FLOW: Final = 2
"""File descriptors of one flow at most: a UDP association of a gateway has the client's connection
and its relay."""

DESCRIPTORS_BESIDE: Final = 64
"""File descriptors of a worker besides its flows: listeners, the event loop, logs, libraries."""


def run(reading: Reading, *, private: bool = False) -> int:
    """Runs one instance of a configuration until it ends; returns the exit status of the process.

    After that the process must not wait for threads: it ends by
    :func:`socks_tunnel.ops.process.leave`. With `private` the instance uses none of the ports of
    the configuration: see :func:`made_private`.

    The status is 0 after a drain or a forced end, 70 after a bug, 73 if something cannot be created
    (a listener, the runtime directory), and 78 for a configuration that cannot be used.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    if parent:
        die_with_parent(int(parent))
    try:
        config = reading.result()
        if private:
            config = made_private(config)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    ops_logging.setup(config.log.level, config.log.format, component="supervisor")
    set_library_log_level(debug=config.log.level == "debug")
    for warning in config.warnings:
        _log.warning("%s", warning)
    try:
        _run(config, handover.inherit(os.environ))
    except StartError as error:
        _log.error("cannot start: %s", error)
        return error.exit_code
    except Exception:  # noqa: BLE001 - the last resort, which reports it and ends the process
        _log.exception("a bug ended the supervisor")
        return EXIT_BUG
    else:
        return 0
    finally:
        audit_file.close()
        ops_logging.shutdown()


def made_private(config: Config) -> Config:
    """Returns the configuration of a gateway for one program, which disturbs no other instance.

    It listens on a free port of loopback, and has neither forwards nor an exporter. Raises
    :class:`ConfigError` for an endpoint.
    """
    if config.role != "gateway":
        message = "must be gateway: an endpoint has no proxy"
        raise ConfigError([Problem(config.source, None, "role", message)])
    own = (HostPort("127.0.0.1", 0),)
    return replace(
        config,
        socks=replace(config.socks, listen=own, allow_remote_clients=False),
        forwards=(),
        metrics=replace(config.metrics, listen=None),
        workers=replace(config.workers, count=1),
    )


def _run(config: Config, legacy: handover.Legacy | None) -> None:
    try:
        directory = paths.runtime_directory(config.instance, create=True)
        lock = _lock(directory, config.instance) if legacy is None else legacy.lock
    except OSError as error:
        raise StartError(
            f"the runtime directory cannot be used: {error}", EXIT_CANNOT_CREATE
        ) from None
    try:
        metrics_directory = paths.metrics_directory(directory)
        try:
            if legacy is None:  # else the counters of the previous program go on
                ops_metrics.prepare_directory(metrics_directory)
        except OSError as error:
            raise StartError(
                f"the directory for metrics cannot be used: {error}", EXIT_CANNOT_CREATE
            ) from None
        files = ops_metrics.configure(metrics_directory, "supervisor")
        files.flush()
        if files.problem is not None:
            raise StartError(
                f"metrics cannot be written to {metrics_directory}: {files.problem}",
                EXIT_CANNOT_CREATE,
            )
        _check_host(config, directory)
        _open_audit_file(config)
        # The loop is not closed: that would wait for threads that wait for the network.
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        runner.run(_run_instance(config, directory, lock, legacy))
    finally:
        os.close(lock)


def _check_host(config: Config, directory: Path) -> None:
    """Raises the limit of file descriptors, and logs what the instance needs and does not have."""
    levels = {"note": logging.INFO, "warning": logging.WARNING, "problem": logging.ERROR}
    for finding in host_findings(config, directory, raise_descriptor_limit()):
        if finding.level in levels:
            _log.log(levels[finding.level], "%s", finding)


def host_findings(config: Config, directory: Path, limit: int) -> Iterator[Finding]:
    """Yields the findings about this host. `limit` is the limit of file descriptors."""
    flows = config.limits.flows_per_worker
    wanted = DESCRIPTORS_PER_FLOW * flows + DESCRIPTORS_BESIDE
    yield from host_checks.descriptors(
        limit, wanted, flows, chosen=flows != LimitSettings().flows_per_worker
    )
    yield from host_checks.socket_buffers()
    yield from host_checks.clock()
    places = {"the runtime directory": directory, "state": paths.state_directory(directory)}
    if config.audit.file is not None:
        places["audit.file"] = config.audit.file.parent
    yield from host_checks.space(places.items())
    names = [peer.name for peer in config.peers]
    yield from host_checks.policy(config.role, build_policies(config), names)


def _open_audit_file(config: Config) -> None:
    try:
        audit_file.use(str(config.audit.file or ""), "supervisor")
    except OSError as error:
        raise StartError(
            f"audit.file: {config.audit.file} cannot be written: {error.strerror}",
            EXIT_CANNOT_CREATE,
        ) from None


async def _run_instance(
    config: Config, directory: Path, lock: int, legacy: handover.Legacy | None
) -> None:
    await Instance(config, directory, lock=lock, legacy=legacy).run()


def _lock(directory: Path, instance: str) -> int:
    """Locks the runtime directory (flock(2)); returns the descriptor of the lock.

    Raises :class:`StartError` if another supervisor holds it, and :class:`OSError`.
    """
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(fd)
        if error.errno not in {errno.EAGAIN, errno.EACCES}:
            raise
        raise StartError(
            f"an instance {instance!r} is running already: it holds {directory / 'lock'}",
            EXIT_CANNOT_CREATE,
        ) from None
    return fd
