"""Stands in for PyAV, which aiortc imports at start for its audio and video tracks.

socks-tunnel has data channels only: it never makes a track, so nothing in PyAV is ever called. PyAV
costs a process 20 MB and 50 ms, and a Debian package more than everything else in it together. Here
are the names that aiortc needs to be imported; using one of them raises
:class:`NotImplementedError`. See docs/adr/0010-no-media-libraries.md.
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
        """Raises."""
        _absent(cls.__name__)


_CLASSES: Final = {
    "av": ("AudioFrame", "AudioResampler", "CodecContext", "VideoFrame"),
    "av.frame": ("Frame",),
    "av.packet": ("Packet",),
    "av.video": (),
    "av.video.codeccontext": ("VideoCodecContext",),
}
"""The modules of PyAV that aiortc imports, and what it takes from each."""


def modules() -> dict[str, ModuleType]:
    """Returns the stand-in: a module for each name."""
    made: dict[str, ModuleType] = {}
    for name, classes in _CLASSES.items():
        module = ModuleType(name, "A stand-in; see socks_tunnel.peer.no_media.")
        module.__path__ = []  # a package, in which nothing else is found
        for cls in classes:
            setattr(module, cls, type(cls, (_Absent,), {"__doc__": "As in PyAV."}))
        made[name] = module
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    made["av"].FFmpegError = FFmpegError  # type: ignore[attr-defined]  # as PyAV has it
    return made


def install() -> None:
    """Puts the stand-in where `import av` finds it, unless PyAV was imported before."""
    if "av" not in sys.modules:
        sys.modules.update(modules())


def _absent(name: str) -> NoReturn:
    message = f"av.{name}: socks-tunnel has no media libraries, see adr/0010-no-media-libraries.md"
    raise NotImplementedError(message)
