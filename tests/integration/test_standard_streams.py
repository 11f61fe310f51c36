"""Commands whose standard streams are closed, or cannot be written."""

import subprocess
import sys
from pathlib import Path

COMMAND = (sys.executable, "-m", "socks_tunnel")


def test_an_output_that_is_full_is_no_bug() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            (*COMMAND, "--help"), stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert done.returncode == 73
    assert done.stderr == ("socks-tunnel: the output cannot be written: No space left on device\n")


def test_closed_standard_streams_end_nothing() -> None:
    done = subprocess.run(
        ("sh", "-c", 'exec "$@" <&- >&-', "sh", *COMMAND, "version"),
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
