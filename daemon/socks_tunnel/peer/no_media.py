"""Replaces PyAV and libsrtp, which aiortc imports at start for its audio and video tracks.

socks-tunnel has data channels only: it never makes a track, so nothing in PyAV is ever called. PyAV
costs each process 20 MB and 50 ms. In a Debian package it would be larger than everything else.
This module has the names that aiortc needs for its imports; using one of them raises
:class:`NotImplementedError`.

libsrtp costs 5 MB. aiortc gives it the keys of each DTLS association, even with data channels only,
and passes it each packet that looks like RTP. The replacement ignores the keys. For a packet it
raises the error that libsrtp would raise without a track, which aiortc logs at debug level. See
docs/adr/0010-no-media-libraries.md.
"""

import sys
from types import ModuleType
from typing import Any, Final, NoReturn


class FFmpegError(Exception):
    """Base of PyAV's errors, which aiortc names in `except` clauses. Never raised."""


class _Absent:
    """A class of PyAV's that can be named in annotations and `isinstance`, but not used."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        _absent(type(self).__name__)

    @classmethod
    def create(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        """Raises an error that says which module of PyAV was asked for."""
        _absent(cls.__name__)


_CLASSES: Final = {
    "av": ("AudioFrame", "AudioResampler", "CodecContext", "VideoFrame"),
    "av.frame": ("Frame",),
    "av.packet": ("Packet",),
    "av.video": (),
    "av.video.codeccontext": ("VideoCodecContext",),
}
"""The modules of PyAV that aiortc imports, and the names that it uses from each."""


class SrtpError(Exception):
    """The error of pylibsrtp, which aiortc catches for each packet."""


class SrtpPolicy:
    """The keys of a session. They are not kept, and attributes that aiortc sets have no effect."""

    SSRC_ANY_INBOUND = 2
    SSRC_ANY_OUTBOUND = 3
    SRTP_PROFILE_AES128_CM_SHA1_80 = 1
    SRTP_PROFILE_AEAD_AES_128_GCM = 7
    SRTP_PROFILE_AEAD_AES_256_GCM = 8

    def __init__(self, **_settings: object) -> None:
        self.allow_repeat_tx = False
        self.window_size = 0


class SrtpSession:
    """A session to which no packet belongs."""

    def __init__(self, policy: SrtpPolicy) -> None:
        del policy

    def unprotect(self, packet: bytes) -> bytes:
        """Raises :class:`SrtpError`, because no packet belongs to this session."""
        raise SrtpError(f"a packet of {len(packet)} bytes: there is no media here")

    unprotect_rtcp = protect = protect_rtcp = unprotect


def srtp() -> ModuleType:
    """Returns the replacement for pylibsrtp."""
    module = ModuleType("pylibsrtp", "A stand-in; see socks_tunnel.peer.no_media.")
    module.Error = SrtpError  # type: ignore[attr-defined]  # as pylibsrtp has it
    module.Policy = SrtpPolicy  # type: ignore[attr-defined]  # likewise
    module.Session = SrtpSession  # type: ignore[attr-defined]  # likewise
    return module


def modules() -> dict[str, ModuleType]:
    """Returns the replacement for PyAV: a module for each name."""
    made: dict[str, ModuleType] = {}
    for name, classes in _CLASSES.items():
        module = ModuleType(name, "A stand-in; see socks_tunnel.peer.no_media.")
        module.__path__ = []  # a package without further modules
        for cls in classes:
            setattr(module, cls, type(cls, (_Absent,), {"__doc__": "As in PyAV."}))
        made[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    made["av"].FFmpegError = FFmpegError  # type: ignore[attr-defined]  # as PyAV has it
    return made


def install() -> None:
    """Installs the replacements, unless the real modules were imported before."""
    if "av" not in sys.modules:
        sys.modules.update(modules())
    if "pylibsrtp" not in sys.modules:
        sys.modules["pylibsrtp"] = srtp()


def _absent(name: str) -> NoReturn:
    message = f"av.{name}: socks-tunnel has no media libraries, see adr/0010-no-media-libraries.md"
    raise NotImplementedError(message)
