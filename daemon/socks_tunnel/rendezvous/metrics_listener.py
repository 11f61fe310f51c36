"""The metrics listener of the rendezvous service: `/metrics`, `/healthz` and `/readyz`.

The service is one process, so its own event loop answers. As long as it does, the service is
healthy. A scrape is rendered in a thread, so that it does not delay the datagrams that are relayed
meanwhile.
"""

from datetime import datetime
from typing import Final

from socks_tunnel.config.models import MetricsListener
from socks_tunnel.exporter.channel import State
from socks_tunnel.exporter.site import Exporter
from socks_tunnel.ops.exposition import Format, written
from socks_tunnel.ops.http_messages import Bounds
from socks_tunnel.ops.http_server import HttpServer
from socks_tunnel.ops.tasks import LagMeter
from socks_tunnel.protocol.addresses import HostPort
from socks_tunnel.rendezvous.figures import PROCESS, Figures
from socks_tunnel.rendezvous.service import Service
from socks_tunnel.signaling.direct import listen_tcp

BOUNDS: Final = Bounds(
    connections=64, per_address=32, requests=32, body=0, read_timeout=10.0, handle_timeout=30.0
)
"""Bounds for clients of the listener: a connection has 10 s for its request, and no body."""


class _Counted:
    """The counts of a service in the form that the figures need."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.counts = service.registry.counts
        self.door_counts = service.door.counts

    @property
    def clients(self) -> int:
        return len(self._service.registry)

    @property
    def channels(self) -> int:
        return len(self._service.relay)

    @property
    def redis_is_up(self) -> bool | None:
        return self._service.redis_is_up


class MetricsPages:
    """Serves the metrics of a service. It is made on the event loop of the service."""

    def __init__(self, service: Service, settings: MetricsListener) -> None:
        self._service = service
        self._settings = settings
        self._state = State()
        self._figures = Figures()
        self._counted = _Counted(service)
        self._http: HttpServer | None = None
        self._lag: LagMeter | None = None
        self.address: HostPort | None = settings.listen
        """The address of the listener; None if there is none."""

    def start(self) -> None:
        """Listens, if it is configured. Raises :class:`OSError`."""
        where = self._settings.listen
        if where is None:
            return
        listening = listen_tcp(where)
        self.address = HostPort(*listening.getsockname()[:2])
        figures = self._figures.common
        figures.set_build_info(PROCESS, aiortc="")
        refusals = figures.http_refused_total

        def refused(reason: str) -> None:
            refusals.labels("metrics", reason).inc()

        pages = Exporter(
            self._state, self._render, names=frozenset(self._settings.hosts), refused=refused
        )
        self._http = HttpServer(
            "metrics",
            listening,
            pages.answer,
            BOUNDS,
            methods=frozenset({"GET", "HEAD"}),
            refused=refused,
        )
        self._look(0.0)
        self._http.start()
        self._lag = LagMeter(self._look)

    def certificate(self, expires: datetime) -> None:
        """Takes the expiry of the certificate that is in use from now on."""
        self._figures.common.tls_certificate_expires_seconds.labels(PROCESS).set(
            expires.timestamp()
        )

    async def stop(self) -> None:
        """Stops listening."""
        if self._lag is not None:
            self._lag.cancel()
        if self._http is not None:
            await self._http.stop()

    def _look(self, late: float) -> None:
        self._figures.common.observe_lag(late)
        self._state.push("draining" if self._service.draining else None)

    def _render(self, wanted: Format) -> bytes:
        return written(self._figures.exported(self._counted), wanted)
