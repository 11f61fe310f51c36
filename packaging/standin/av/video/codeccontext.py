"""Stand-in for PyAV's module of this name; see av/__init__.py."""

from .. import _Absent


class VideoCodecContext(_Absent):
    """As in PyAV."""
