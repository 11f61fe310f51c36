"""`socks-tunnel rendezvous`: the process, its signals, and its exit status."""

import asyncio
import logging
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import uvloop

from socks_tunnel.config.errors import ConfigError
from socks_tunnel.config.rendezvous import RendezvousConfig, load_rendezvous
from socks_tunnel.config.settings import listener_text
from socks_tunnel.ops import logging as ops_logging
from socks_tunnel.ops.bugs import BugLog
from socks_tunnel.ops.notify import Notifier
from socks_tunnel.ops.process import raise_descriptor_limit
from socks_tunnel.ops.tasks import spawn
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.rendezvous.metrics_listener import MetricsPages
from socks_tunnel.rendezvous.service import Service
from socks_tunnel.signaling.tls import ServerCertificate, TlsFileError, read_server_certificate

_log = logging.getLogger(__name__)
_bugs = BugLog()

EXIT_BUG: Final = 70
EXIT_CANNOT_CREATE: Final = 73
EXIT_CONFIG: Final = 78

REPORT_PERIOD: Final = 600.0
"""Seconds between two log lines with the counts of what was passed on and refused."""

READ_TIMEOUT: Final = 30.0
"""Seconds for a reload to read its files. Signals, also SIGTERM, wait for it."""

NEEDS_RESTART: Final = ("listen", "clients", "clients_max", "redis_url", "metrics")
"""Settings that a reload does not change."""


def run(config_path: Path) -> int:
    """Runs the service until it ends; returns the exit status of the process.

    After that, the process has to end without waiting for threads:
    :func:`socks_tunnel.ops.process.leave`.

    0 after a drain, 70 for a bug, 73 for a listener that cannot be bound, 78 for a configuration
    that cannot be used.
    """
    try:
        config = load_rendezvous(config_path)
        certificate = read_certificate(config)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_CONFIG
    except TlsFileError as error:
        sys.stderr.write(f"{config_path}: {error.key}: {error}\n")
        return EXIT_CONFIG
    ops_logging.setup(config.log.level, config.log.format, component="rendezvous")
    raise_descriptor_limit()
    try:
        # The loop is not closed, because that would wait for threads that wait for the network or a
        # disk.
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
        runner.run(_serve(config, certificate))
    except _CannotListenError as error:
        _log.error("cannot listen on %s", error)
        return EXIT_CANNOT_CREATE
    except Exception:  # noqa: BLE001 - the last resort: it reports the exception and ends the process
        _log.exception("a bug ended the rendezvous service")
        return EXIT_BUG
    else:
        return 0
    finally:
        ops_logging.shutdown()


def read_certificate(config: RendezvousConfig) -> ServerCertificate | None:
    """Returns the certificate; None if there is none. Raises :class:`TlsFileError`."""
    if config.tls_certificate is None:
        return None
    return read_server_certificate(config.tls_certificate, config.tls_key)


class _CannotListenError(Exception):
    """A listener cannot be bound. The text has its address and the reason."""

    def __init__(self, where: HostPort | Path | None, error: OSError) -> None:
        address = "" if where is None else listener_text(where)
        super().__init__(f"{address}: {error.strerror or error}")


async def _serve(config: RendezvousConfig, certificate: ServerCertificate | None) -> None:
    loop = asyncio.get_running_loop()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
        loop.add_signal_handler(number, signals.put_nowait, number)
    notifier = Notifier(os.environ)
    service = Service(config, certificate)
    pages = MetricsPages(service, config.metrics)
    try:
        await service.start()
    except OSError as error:
        raise _CannotListenError(config.listen, error) from None
    try:
        pages.start()
    except OSError as error:
        await service.stop()
        raise _CannotListenError(config.metrics.listen, error) from None
    how = "WebSocket without TLS" if certificate is None else "WebSocket over TLS"
    _log.info(
        "rendezvous service listening on %s, %s; clients: %s, %d keys",
        listener_text(service.address),
        how,
        config.clients,
        len(config.keys),
    )
    if pages.address is not None:
        _log.info("metrics on http://%s/metrics", pages.address)
    _tell(certificate, pages)
    notifier.ready("serving")
    background = [spawn("report", _report_forever(service))]
    if notifier.watchdog_interval is not None:
        background.append(spawn("watchdog", _feed(notifier, notifier.watchdog_interval)))
    try:
        while (number := await signals.get()) not in {signal.SIGTERM, signal.SIGINT}:
            if number is signal.SIGUSR1:
                _report(service)
            else:
                notifier.reloading()
                config = await _reload(service, pages, config)
                notifier.ready("serving")
        notifier.stopping()
        _log.info("%s: asking %d clients to leave", number.name, len(service.registry))
        again = spawn("second signal", _ended_again(signals))
        draining = spawn("drain", service.drain(config.drain_timeout))
        await asyncio.wait([again, draining], return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        again.cancel()
        await asyncio.wait([again, draining])
    finally:
        await service.stop()
        await pages.stop()
        for task in background:
            task.cancel()
        notifier.close()
    _report(service)


async def _ended_again(signals: "asyncio.Queue[signal.Signals]") -> None:
    while await signals.get() not in {signal.SIGTERM, signal.SIGINT}:
        pass
    _log.warning("a second signal was received: ending at once")


async def _reload(
    service: Service, pages: MetricsPages, config: RendezvousConfig
) -> RendezvousConfig:
    """Reads the configuration again. Returns the configuration that is in force then."""
    try:
        async with asyncio.timeout(READ_TIMEOUT):
            read = await asyncio.to_thread(load_rendezvous, config.source)
            certificate = await asyncio.to_thread(read_certificate, read)
    except TimeoutError:
        _log.error(
            "reload refused: %s and its TLS files were not read within %.0f s; they are on a file "
            "system that does not answer",
            config.source,
            READ_TIMEOUT,
        )
        return config
    except (ConfigError, TlsFileError) as error:
        _log.error("reload refused: %s", error)
        return config
    waiting = [name for name in NEEDS_RESTART if getattr(read, name) != getattr(config, name)]
    if (certificate is None) != (config.tls_certificate is None):
        _log.error("reload refused: TLS cannot be switched on or off without a restart")
        return config
    if waiting:
        _log.warning("these changes need a restart: %s", ", ".join(waiting))
    service.apply(read, certificate)
    _tell(certificate, pages)
    _log.info("reloaded: %d keys", len(read.keys))
    return read.model_copy(update={name: getattr(config, name) for name in NEEDS_RESTART})


def _tell(certificate: ServerCertificate | None, pages: MetricsPages) -> None:
    if certificate is None:
        return
    pages.certificate(certificate.not_after)
    complaint = certificate.complaint(datetime.now(UTC))
    if complaint is None:
        _log.info("TLS certificate %s", certificate)
    else:
        _log.warning("TLS certificate %s: it %s; clients refuse it", certificate.path, complaint)


async def _report_forever(service: Service) -> None:
    while True:
        await asyncio.sleep(REPORT_PERIOD)
        with _bugs.going_on(_log, "a report met a bug"):
            _report(service)


def _report(service: Service) -> None:
    counts = service.registry.counts
    parts = [f"{what} {count}" for what, count in sorted(counts.items())]
    parts += [f"closed ({why}) {count}" for why, count in sorted(service.door.counts.items())]
    service.relay.sweep(asyncio.get_running_loop().time())
    _log.info(
        "%d clients, %d relayed connections; since the start: %s",
        len(service.registry),
        len(service.relay),
        ", ".join(parts) or "-",
    )


async def _feed(notifier: Notifier, interval: float) -> None:
    while True:
        notifier.watchdog()
        await asyncio.sleep(interval)
