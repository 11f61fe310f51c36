"""Stands in for PyAV in the Debian package of socks-tunnel, and only there.

aiortc imports PyAV at start for its audio and video tracks. socks-tunnel has data channels only: it
never makes a track, so nothing in PyAV is ever called. PyAV with the codecs that its wheel bundles is
larger than everything else in the package together. Here are the names that aiortc needs to be
imported; using one of them raises :class:`NotImplementedError`, which says where to read on.
See docs/adr/0010-no-media-libraries.md.
"""

from typing import Any, NoReturn


class FFmpegError(Exception):
    """Base of PyAV's errors, which aiortc names in `except` clauses. Never raised."""


class _Absent:
    """A class of PyAV's that can be named in annotations and `isinstance`, but not used."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        _absent(type(self).__name__)

    @classmethod
    def create(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        _absent(cls.__name__)


class AudioFrame(_Absent):
    """As in PyAV."""


class AudioResampler(_Absent):
    """As in PyAV."""


class CodecContext(_Absent):
    """As in PyAV."""


class VideoFrame(_Absent):
    """As in PyAV."""


def _absent(name: str) -> NoReturn:
    message = (
        f"av.{name}: this package of socks-tunnel has no media libraries, see "
        "/usr/share/doc/socks-tunnel/adr/0010-no-media-libraries.md"
    )
    raise NotImplementedError(message)
