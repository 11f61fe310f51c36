"""The guard around aiortc's private names: fails loudly when one of them changes."""

import logging
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aioice.ice
import aiortc.rtcdtlstransport
import pytest
from aiortc import InvalidStateError, RTCDataChannel, RTCDtlsTransport, RTCSctpTransport

from socks_tunnel.peer import aiortc_private
from socks_tunnel.peer.aiortc_private import (
    DATAGRAM_QUEUE_MAX,
    UnsupportedAiortcError,
    check_supported,
    is_closing_noise,
    is_library_error,
    watch_buffered,
)

ROOT = Path(__file__).parents[3]


def read(name: str) -> list[str]:
    """The lines of a file of the checkout."""
    return (ROOT / name).read_text("utf-8").splitlines()


def test_the_installed_releases_are_the_ones_that_were_read() -> None:
    assert version("aiortc").startswith("1.16.")
    assert version("aioice").startswith("0.13.")
    check_supported()


def test_ci_runs_with_every_release_that_is_allowed() -> None:
    """One is allowed, it is the one of the lock files, and `.ci/run` has it meet the other stacks."""
    (allowed,) = [
        line.strip().strip('",')
        for line in read("pyproject.toml")
        if line.strip().startswith('"aiortc')
    ]
    assert re.fullmatch(r"aiortc==[0-9]+\.[0-9]+\.[0-9]+", allowed), (
        "a range would allow what CI has not tried"
    )
    locks = sorted((ROOT / "requirements").glob("*.lock"))
    locked = [
        line.split()[0]
        for lock in locks
        for line in lock.read_text("utf-8").splitlines()
        if line.startswith("aiortc")
    ]
    assert locked == [allowed] * 6  # three Pythons, to run and to work on it
    assert allowed == f"aiortc=={version('aiortc')}"
    assert "export INTEROP=required" in read(".ci/run")


def test_another_release_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aiortc.__version__", "1.17.0")
    with pytest.raises(UnsupportedAiortcError, match=r"aiortc 1\.17\.0 is installed"):
        check_supported()


def test_a_changed_function_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def renamed(self: RTCDataChannel, delta: int) -> None:
        raise AssertionError

    monkeypatch.setattr(RTCDataChannel, "_addBufferedAmount", renamed)
    with pytest.raises(UnsupportedAiortcError, match="_addBufferedAmount takes"):
        check_supported()
    monkeypatch.delattr(RTCDataChannel, "_addBufferedAmount")
    with pytest.raises(UnsupportedAiortcError, match="takes None"):
        check_supported()


@pytest.mark.parametrize("owner", [RTCSctpTransport, RTCDtlsTransport, aioice.ice.Connection])
def test_a_lost_attribute_is_refused(owner: type, monkeypatch: pytest.MonkeyPatch) -> None:
    def empty(self: object) -> None:
        raise AssertionError

    monkeypatch.setattr(owner, "__init__", empty)
    with pytest.raises(UnsupportedAiortcError, match=f"{owner.__name__} has no attribute"):
        check_supported()


class Transport:
    """What RTCDataChannel asks of its SCTP transport."""

    def _data_channel_open(self, channel: RTCDataChannel) -> None:
        pass

    def _data_channel_send(self, channel: RTCDataChannel, data: bytes) -> None:
        channel._addBufferedAmount(len(data))


def test_the_buffered_amount_is_watched() -> None:
    channel = RTCDataChannel(
        Transport(),  # type: ignore[arg-type]
        aiortc.RTCDataChannelParameters(label="x"),
    )
    seen: list[int] = []
    watch_buffered(channel, seen.append)
    channel._setReadyState("open")
    channel.send(b"12345")
    channel._addBufferedAmount(-5)
    assert seen == [5, -5]
    assert channel.bufferedAmount == 0


# --- datagrams --------------------------------------------------------------------------------


class Receiver:
    """What a StunProtocol hands datagrams to."""

    def __init__(self, waiting: int = 0) -> None:
        self._queue = SimpleNamespace(qsize=lambda: waiting)
        self.got: list[bytes] = []

    def data_received(self, data: bytes, component: int) -> None:
        assert component == 1
        self.got.append(data)


def deliver(data: bytes, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Let the filter see a datagram; give what it left for aioice's own parser."""
    parsed: list[bytes] = []

    def original(protocol: object, data: bytes, addr: tuple[str, int]) -> None:
        parsed.append(data)
        raise LookupError("aioice cannot read this")

    monkeypatch.setattr(aiortc_private, "_aioice_datagram_received", original)
    protocol: Any = SimpleNamespace(receiver=receiver)
    aioice.ice.StunProtocol.datagram_received(protocol, data, ("192.0.2.1", 1234))
    return parsed


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (b"", "dropped"),
        (b"\x04", "dropped"),
        (b"\x13", "dropped"),
        (b"\x14", "dtls"),
        (b"\x17\xfe\xfd", "dtls"),
        (b"\x3f", "dtls"),
        (b"\x40", "dropped"),
        (b"\x80\x60", "dropped"),
        (b"\xff", "dropped"),
    ],
)
def test_datagrams_are_sorted(data: bytes, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver()
    parsed = deliver(data, receiver, monkeypatch)
    assert receiver.got == ([data] if kind == "dtls" else [])
    assert parsed == []  # what is STUN: tests/integration/test_aiortc_private.py


def test_datagrams_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for waiting, taken in ((DATAGRAM_QUEUE_MAX - 1, [b"\x17"]), (DATAGRAM_QUEUE_MAX, [])):
        receiver = Receiver(waiting)
        deliver(b"\x17", receiver, monkeypatch)
        assert receiver.got == taken


# --- errors of the libraries' tasks -----------------------------------------------------------


def raised_by(
    module: str, error: BaseException, call: Callable[[], None] | None = None
) -> BaseException:
    """Raise `error` in a function that seems to be of `module`, after it called `call`."""
    names: dict[str, Any] = {"__name__": module, "call": call or (lambda: None), "error": error}
    exec("def fail():\n    call()\n    raise error", names)
    function: Callable[[], None] = names["fail"]
    with pytest.raises(type(error)):
        function()
    assert error.__traceback__ is not None
    return error.with_traceback(error.__traceback__.tb_next)  # without this test's own frame


SSLError: type[Exception] = vars(aiortc.rtcdtlstransport)["SSL"].Error


@pytest.mark.parametrize(
    ("module", "error", "noise"),
    [
        ("aiortc.rtcsctptransport", ConnectionError("gone"), True),
        ("aioice.ice", ConnectionResetError(), True),
        ("aiortc.rtcicetransport", InvalidStateError("closed"), True),
        ("aiortc.rtcdtlstransport", SSLError(), True),
        ("aioice.stun", RuntimeError("unable to perform operation; the handler is closed"), True),
        ("aioice.stun", RuntimeError("something else"), False),
        ("aiortc.rtcsctptransport", AssertionError(), False),
        ("socks_tunnel.supervisor.main", ConnectionError("ours"), False),
        ("aiortcx.other", ConnectionError("another's"), False),
    ],
)
def test_closing_noise(module: str, error: BaseException, noise: bool) -> None:
    assert is_closing_noise(raised_by(module, error)) is noise


def test_an_error_of_ours_under_aiortc_is_no_noise() -> None:
    error = ConnectionError("raised by an observer")

    def observer() -> None:
        raised_by_us: Any = {"__name__": "socks_tunnel.supervisor.routing", "error": error}
        exec("def fail():\n    raise error", raised_by_us)
        raised_by_us["fail"]()

    assert not is_closing_noise(raised_by("aiortc.rtcsctptransport", error, observer))


def test_whose_fault_an_error_is() -> None:
    assert is_library_error(raised_by("aiortc.rtcsctptransport", AssertionError()))
    assert not is_library_error(raised_by("socks_tunnel.supervisor.routing", AssertionError()))


def test_layers_that_only_hand_packets_on_are_not_blamed() -> None:
    below = raised_by("aiortc.rtcsctptransport", AssertionError())
    assert is_library_error(raised_by("socks_tunnel.peer.plain.fences", below))
    assert is_library_error(raised_by("socks_tunnel.peer.fast.dtls", below))
    assert not is_library_error(raised_by("socks_tunnel.peer.fast.dtls", AssertionError()))


def test_the_libraries_are_quiet_by_default() -> None:
    assert not logging.getLogger("aioice.ice").isEnabledFor(logging.INFO)
    assert not logging.getLogger("aiortc.rtcdtlstransport").isEnabledFor(logging.WARNING)
