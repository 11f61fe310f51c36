"""Sockets that one program lends and another adopts, without a kernel."""

from __future__ import annotations

import io
from types import ModuleType
from typing import Any

import pytest

from socks_tunnel.protocol.handover import STATE_VERSION, Head, StateReader, StateWriter
from unit.workers.frontends.fakes import Sock


class Kernel:
    """Descriptors: what `lend` names, `adopt` returns, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *modules: ModuleType) -> None:
        self.lent: dict[int, Sock] = {}
        for module in modules:
            monkeypatch.setattr(module, "lend", self.lend)
            monkeypatch.setattr(module, "adopt", self.adopt)

    def lend(self, sock: Any) -> int:
        fd = 10 + len(self.lent)
        self.lent[fd] = sock
        return fd

    def adopt(self, fd: int) -> Sock:
        sock = self.lent.pop(fd, None)
        if sock is None:
            raise OSError(9, "Bad file descriptor")
        return sock


def again(record: dict[str, Any]) -> dict[str, Any]:
    """What becomes of a record on its way through a file."""
    file = io.BytesIO()
    writer = StateWriter(file, Head(STATE_VERSION, "test"))
    writer.write(record)
    writer.finish()
    file.seek(0)
    (read,) = StateReader(file).records()
    return read
