"""Hosts with real links on loopback and fake workers, for the tests of the supervisor's links."""

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from prometheus_client import CollectorRegistry

from socks_tunnel.config.settings import Config
from socks_tunnel.ops.metrics import Metrics
from socks_tunnel.protocol.ipc import Attach, Attached, Control
from socks_tunnel.signaling.identity import PrivateIdentity
from socks_tunnel.supervisor.answerer import EndpointLinks
from socks_tunnel.supervisor.gateway_links import GatewayLinks
from socks_tunnel.supervisor.peerlink import PeerLink
from socks_tunnel.supervisor.router import Router, WorkerRoutes
from socks_tunnel.supervisor.routing import AttachedLink
from support.configs import checked

C = TypeVar("C")


class FakeWorker:
    """The supervisor's end of a worker: remembers what it was sent."""

    def __init__(self) -> None:
        self.paused = False
        self.buffered = self.urgent = 0
        self.messages: list[tuple[int, bytes]] = []
        self.controls: list[Control] = []
        self.routes: WorkerRoutes | None = None

    def send_messages(self, session: int, messages: Sequence[bytes]) -> None:
        self.messages += [(session, message) for message in messages]

    def send_urgent(self, session: int, messages: Sequence[bytes]) -> None:
        self.send_messages(session, messages)

    def send_control(self, session: int, message: Control) -> None:
        self.controls.append(message)
        if isinstance(message, Attach):
            # As a process answers: in a later turn of the event loop.
            asyncio.get_running_loop().call_soon(self._attached, session)

    def _attached(self, session: int) -> None:
        assert self.routes is not None
        self.routes.attached(session, Attached([], last=True))

    def told(self, kind: type[C]) -> list[C]:
        return [message for message in self.controls if isinstance(message, kind)]


class Side:
    """One host: its router with one fake worker, and its links."""

    manager: GatewayLinks | EndpointLinks

    def __init__(self, role: str, identity: PrivateIdentity, config: Config) -> None:
        self.registry = CollectorRegistry()
        self.identity = identity
        self.abused: list[str] = []
        metrics = Metrics(self.registry)
        self.router = Router(
            opens=role == "gateway",
            worker_count=1,
            flows_per_worker=100,
            metrics=metrics,
            on_abuse=self.abuse,
            clock=time.monotonic,
            resume_timeout=60.0,
        )
        self.worker = FakeWorker()
        self.routes: WorkerRoutes = self.router.worker_up(0, self.worker)
        self.worker.routes = self.routes
        kind = GatewayLinks if role == "gateway" else EndpointLinks
        self.manager = kind(config, identity, self.router, metrics)

    def abuse(self, link: AttachedLink, reason: str) -> None:
        self.abused.append(reason)
        self.manager.abuse(link, reason)

    @property
    def up(self) -> list[PeerLink]:
        return self.manager.up()

    def row(self, peer: str) -> dict[str, Any]:
        (row,) = [row for row in self.manager.status() if row["peer"] == peer]
        return row

    def detail(self, peer: str) -> str:
        return self.row(peer).get("detail") or ""

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"socks_tunnel_{name}", labels) or 0.0


class World:
    """Makes hosts that meet on Unix sockets in one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.sides: list[Side] = []
        self.keys: dict[str, PrivateIdentity] = {}

    def key(self, name: str) -> PrivateIdentity:
        return self.keys.setdefault(name, PrivateIdentity.generate())

    def config(self, role: str, *peers: str, **tables: Any) -> Config:
        rows = []
        for peer in peers:
            row = {"name": peer, "public_key": self.key(peer).public_text}
            if role == "gateway":
                row["url"] = f"unix:{self.directory}/{peer}.sock"
            rows.append(row)
        fields: dict[str, Any] = {
            "role": role,
            "source": str(self.directory / f"{role}.toml"),
            "identity": {"private_key_file": "key"},
            "peers": rows,
            "ice": {"addresses": ["127.0.0.1"]},
            **tables,
        }
        return checked(fields, self.directory)

    def side(self, role: str, name: str, *peers: str, **tables: Any) -> Side:
        if role == "endpoint":
            tables["signaling"] = {"listen": f"unix:{self.directory}/{name}.sock"}
        side = Side(role, self.key(name), self.config(role, *peers, **tables))
        self.sides.append(side)
        return side

    def gateway(self, name: str = "laptop", *peers: str, **tables: Any) -> Side:
        return self.side("gateway", name, *(peers or ("office",)), **tables)

    def endpoint(self, name: str = "office", *peers: str, **tables: Any) -> Side:
        return self.side("endpoint", name, *(peers or ("laptop",)), **tables)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def linked(world: World, **gateway: Any) -> tuple[Side, Side]:
    endpoint, side = world.endpoint(), world.gateway(**gateway)
    await endpoint.manager.start()
    await side.manager.start()
    await until(lambda: side.up and endpoint.up)
    return side, endpoint
