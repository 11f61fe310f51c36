"""The walk of a byte, as docs/architecture.md tells it: payload is copied once each way."""

import re
import subprocess
import sys

from support.structure import ROOT


def test_payload_is_copied_once_each_way() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.walk", "--messages", "5", "--connections", "2"],
        cwd=ROOT / "tests",
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    bulk, echo, places, connections = done.stdout.splitlines()
    # Three reads each way: from the source's socket, and from the IPC streams of both hosts.
    assert places == (
        "one message of 16384 bytes, there and back: 6 places that the kernel read it to, "
        "2 copies, in RoutedSession.from_worker, RoutedSession.from_worker"
    )
    for line in (bulk, echo, connections):
        assert re.search(r": \d+\.\d Python calls and \d+\.\d\d turns of the loop a ", line), line
