"""The stand-ins for PyAV and libsrtp: the names are there, and whoever uses one is told."""

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


@pytest.mark.parametrize("name", ["av", "pylibsrtp"])
def test_what_was_imported_before_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    there = object()
    monkeypatch.setitem(sys.modules, name, there)
    no_media.install()
    assert sys.modules[name] is there


def test_what_looks_like_media_is_an_error_that_aiortc_expects() -> None:
    srtp: Any = no_media.srtp()
    policy = srtp.Policy(key=b"secret", ssrc_type=srtp.Policy.SSRC_ANY_INBOUND, srtp_profile=1)
    session = srtp.Session(policy)
    for call in (session.unprotect, session.unprotect_rtcp, session.protect, session.protect_rtcp):
        with pytest.raises(srtp.Error, match="a packet of 3 bytes"):
            call(b"abc")
    assert b"secret" not in vars(policy).values()
