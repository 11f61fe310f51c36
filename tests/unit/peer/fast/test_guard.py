"""The guard knows the libraries that are installed, and notices each kind of change in them."""

from collections import deque
from typing import Any

import OpenSSL._util
import pytest
from aiortc import RTCDtlsTransport

from socks_tunnel.peer.fast import guard, records

BINDING: Any = OpenSSL._util.lib


def test_the_installed_libraries_are_the_ones_that_were_read() -> None:
    assert guard.differences() == []
    assert guard.self_test() is None
    assert guard.binding_differences() == []
    assert guard.MISMATCH is None
    assert guard.FENCES_FIT


def test_each_name_has_a_fingerprint_of_its_own() -> None:
    assert all(guard.fingerprint(name) == digest for name, digest in guard.SOURCES.items())
    assert len(set(guard.SOURCES.values())) == len(guard.SOURCES)


def test_a_changed_body_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    async def _recv_next(self: Any) -> None:
        """Something else."""

    monkeypatch.setattr(RTCDtlsTransport, "_recv_next", _recv_next)
    assert guard.differences() == [
        "aiortc.rtcdtlstransport.RTCDtlsTransport._recv_next has changed"
    ]


def test_a_name_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RTCDtlsTransport, "_write_ssl")
    assert guard.differences() == [
        "aiortc.rtcdtlstransport.RTCDtlsTransport._write_ssl is not there"
    ]


def test_a_function_without_source_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RTCDtlsTransport, "_send_data", len)
    assert len(guard.differences()) == 1


class Binding:
    """pyOpenSSL's binding without one of its functions, or with another in its place."""

    def __init__(self, name: str, put: Any) -> None:
        self._name, self._put = name, put

    def __getattr__(self, name: str) -> Any:
        if name == self._name:
            if self._put is None:
                raise AttributeError(name)
            return self._put
        return getattr(BINDING, name)


@pytest.mark.parametrize("put", [None, OpenSSL._util.lib.SSL_get_error])
def test_another_binding_is_noticed(monkeypatch: pytest.MonkeyPatch, put: Any) -> None:
    monkeypatch.setattr(OpenSSL._util, "lib", Binding("SSL_read", put))
    assert guard.differences() == []
    (what,) = guard.binding_differences()
    assert what.startswith("OpenSSL's SSL_read is ")


def test_a_batch_that_fails_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def read_joined(self: Any, data: Any, size: int, segment: int, packets: deque[bytes]) -> int:
        return 0

    monkeypatch.setattr(records.Records, "read_joined", read_joined)
    assert guard.self_test() == "a forged record costs more than itself"


def test_dtls_1_3_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "DTLS_1_2", 0)
    assert guard.self_test() == "DTLS 1.2 is not negotiated but DTLSv1.2"


def test_an_exception_is_a_mismatch_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    def write(self: Any, packets: Any) -> memoryview:
        raise OSError("scripted")

    monkeypatch.setattr(records.Records, "write", write)
    assert "scripted" in (guard.self_test() or "")
