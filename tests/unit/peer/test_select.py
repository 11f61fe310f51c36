"""Which transport a link gets, and what is said of it."""

from typing import Literal

import pytest

from socks_tunnel.ops.compiled import compiled_state
from socks_tunnel.peer.fast import guard
from socks_tunnel.peer.fast.transport import FastTransport
from socks_tunnel.peer.ice import IceSettings
from socks_tunnel.peer.plain.transport import PlainTransport
from socks_tunnel.peer.select import fast_path_active, fast_path_state, new_transport


@pytest.mark.parametrize(
    ("setting", "mismatch", "kind", "said"),
    [
        ("auto", None, FastTransport, compiled_state()),
        ("off", None, PlainTransport, "off (transport.fast_path)"),
        ("auto", "something has changed", PlainTransport, "off: something has changed"),
        ("off", "something has changed", PlainTransport, "off (transport.fast_path)"),
    ],
)
async def test_what_a_link_gets(
    monkeypatch: pytest.MonkeyPatch,
    setting: Literal["auto", "off"],
    mismatch: str | None,
    kind: type,
    said: str,
) -> None:
    monkeypatch.setattr(guard, "MISMATCH", mismatch)
    transport = new_transport("gateway", IceSettings(), name="office", fast_path=setting)
    assert type(transport) is kind
    assert transport.state == "new"
    assert fast_path_active(setting) is (kind is FastTransport)
    assert fast_path_state(setting) == said


async def test_servers_that_cannot_be_used_are_refused_on_both() -> None:
    bad = IceSettings(servers=[{"urls": "nonsense:x"}])
    for setting in ("auto", "off"):
        with pytest.raises(ValueError, match="nonsense"):
            new_transport("endpoint", bad, name="laptop", fast_path=setting)
