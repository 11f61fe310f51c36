"""PyAV and libsrtp are not loaded, and whoever used PyAV would be told."""

import subprocess
import sys

PROGRAM = """
import sys
sys.path[:0] = {path!r}
import socks_tunnel.peer
import aiortc
import av.video.codeccontext
assert sys.modules["av"].__file__ is None if hasattr(av, "__file__") else True
assert not [m for m in sys.modules if m.startswith("av.") and m not in {{
    "av.frame", "av.packet", "av.video", "av.video.codeccontext"}}]
maps = open("/proc/self/maps").read()
assert "libavcodec" not in maps and "/av/" not in maps and "/pylibsrtp/" not in maps
try:
    av.AudioFrame(format="s16")
except NotImplementedError as error:
    assert "adr/0010" in str(error)
else:
    raise AssertionError
try:
    av.CodecContext.create("opus", "r")
except NotImplementedError:
    print("told")
"""


def test_aiortc_is_imported_without_pyav() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(path=sys.path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("told\n", 0), done.stderr


KEEPS = """
import sys
sys.path[:0] = {path!r}
import av
real = av
import socks_tunnel.peer
import av
assert av is real and av.__file__
"""


def test_pyav_that_is_there_already_is_left_alone() -> None:
    subprocess.run([sys.executable, "-c", KEEPS.format(path=sys.path)], check=True)
