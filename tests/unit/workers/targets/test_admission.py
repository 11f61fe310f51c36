"""Who is let in at all. Flows at work, and reloads: tests/integration/test_targets.py."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

import pytest

from socks_tunnel.protocol.errors import CloseReason
from socks_tunnel.protocol.messages import (
    Answer,
    OpenConnection,
    Resolve,
    Resolved,
    ResolveKind,
    UdpAssociate,
)
from socks_tunnel.protocol.session import Opening
from socks_tunnel_workers.targets.admission import Targets
from support.target_services import Core, Session, services


@dataclass
class RefusingCore(Core):
    refused: list[tuple[int, int, int]] = field(default_factory=list)

    def refuse(self, conn_id: int, reason: int, *, kind: int) -> None:
        self.refused.append((conn_id, reason, kind))


class Gateway(Session):
    def __init__(self) -> None:
        super().__init__()
        self.draining = False
        self.core: RefusingCore = RefusingCore()


class Endpoint:
    def __init__(self) -> None:
        self.full = False
        self.warnings: list[str] = []
        made = services("192.0.2.0/24")
        self.targets = Targets(
            settings=made.settings,
            resolver=cast("Any", None),
            access=made.access,
            warn=lambda _kind, message, *args: self.warnings.append(message % args),
            flows=tuple,
            full=lambda: self.full,
        )

    def open(self, gateway: Gateway, message: Opening) -> None:
        self.targets.open(cast("Any", gateway), message)


OPENINGS: list[Opening] = [
    OpenConnection(1, "192.0.2.1", 80),
    UdpAssociate(1),
    Resolve(1, ResolveKind.ADDRESSES, "192.0.2.1"),
]


@pytest.mark.parametrize("message", OPENINGS, ids=lambda message: type(message).__name__)
async def test_a_worker_that_drains_or_is_full_opens_nothing(message: Opening) -> None:
    endpoint, gateway = Endpoint(), Gateway()
    endpoint.full = True
    endpoint.open(gateway, message)
    gateway.draining = True
    endpoint.open(gateway, message)
    assert gateway.core.refused == [
        (1, CloseReason.RESOURCE_LIMIT, message.TYPE),
        (1, CloseReason.SHUTTING_DOWN, message.TYPE),
    ]
    assert len(endpoint.warnings) == 1
    assert "limits.flows_per_worker" in endpoint.warnings[0]
    assert not gateway.core.questions


async def test_a_question_is_no_flow() -> None:
    endpoint, gateway = Endpoint(), Gateway()
    endpoint.open(gateway, OPENINGS[-1])
    assert gateway.core.questions.ids() == [1]
    await asyncio.sleep(0)
    assert gateway.sent == [Resolved(1, CloseReason.ORDERLY, (Answer(60, "192.0.2.1"),))]


async def test_a_reload_without_flows_is_over_at_once() -> None:
    endpoint = Endpoint()
    cast("Any", endpoint.targets).loop = Clock()
    endpoint.targets.reload()
    assert endpoint.targets._recheck is None


class Clock:
    def time(self) -> float:
        return 0.0
