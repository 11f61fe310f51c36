"""What a process says at its start about libraries that are not those that were read."""

import subprocess
import sys


def test_one_line_says_what_differs() -> None:
    script = """
import logging
logging.basicConfig(format="%(levelname)s %(message)s")
from aiortc import RTCDtlsTransport
del RTCDtlsTransport._write_ssl, RTCDtlsTransport._get_stats
from socks_tunnel.peer.fast import guard
print(guard.MISMATCH)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    what = "aiortc.rtcdtlstransport.RTCDtlsTransport._get_stats is not there, and 1 more"
    assert done.stdout.strip() == what
    assert done.stderr.strip() == (
        f"WARNING the fast path is off, links run on unmodified aiortc: {what}"
    )
