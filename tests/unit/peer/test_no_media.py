"""The stand-in for PyAV: the names are there, and whoever uses one is told."""

import sys
from typing import Any

import pytest

from socks_tunnel.peer import no_media


def test_the_names_that_aiortc_imports_are_there() -> None:
    made = no_media.modules()
    av: Any = made["av"]
    assert av.video.codeccontext is made["av.video.codeccontext"]
    assert issubclass(av.FFmpegError, Exception)
    assert isinstance(made["av.frame"].Frame, type)
    assert isinstance(made["av.packet"].Packet, type)


def test_using_one_says_where_to_read_on() -> None:
    av: Any = no_media.modules()["av"]
    with pytest.raises(NotImplementedError, match=r"av\.AudioFrame: .*adr/0010"):
        av.AudioFrame(format="s16")
    with pytest.raises(NotImplementedError, match=r"av\.CodecContext: "):
        av.CodecContext.create("opus", "r")


def test_pyav_that_was_imported_before_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    there = object()
    monkeypatch.setitem(sys.modules, "av", there)
    no_media.install()
    assert sys.modules["av"] is there
