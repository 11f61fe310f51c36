"""A process on the leash dies with its parent, whatever its parent dies of."""

import select
import subprocess
import sys

import pytest

from socks_tunnel.ops import process

# The outer process starts the inner one and is then killed; the inner one holds the pipe open.
OUTER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1]], pass_fds=(1,))
time.sleep(600)
"""
INNER = """
import sys, time
sys.path[:0] = {path!r}
from socks_tunnel.ops.process import die_with_parent
die_with_parent({expected})
print("on the leash", flush=True)
time.sleep(600)
"""


def test_the_kernel_kills_it_when_its_parent_is_killed() -> None:
    inner = INNER.format(path=sys.path, expected="None")
    with subprocess.Popen([sys.executable, "-c", OUTER, inner], stdout=subprocess.PIPE) as outer:
        assert outer.stdout is not None
        assert outer.stdout.readline() == b"on the leash\n"
        outer.kill()
        assert select.select([outer.stdout], [], [], 30)[0]
        assert outer.stdout.read() == b"", "the inner process no longer holds the pipe"


@pytest.mark.parametrize(("expected", "status"), [("__import__('os').getppid()", 0), ("1", 1)])
def test_a_parent_that_is_gone_already_is_noticed(expected: str, status: int) -> None:
    script = INNER.format(path=sys.path, expected=expected).replace("time.sleep(600)", "")
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == status


@pytest.mark.skipif(sys.platform != "linux", reason="oom_score_adj is Linux's")
def test_the_kernel_is_asked_to_take_a_child_first() -> None:
    script = f"""
import sys
sys.path[:0] = {sys.path!r}
from pathlib import Path
from socks_tunnel.ops.process import die_before_parent
before = int(Path("/proc/self/oom_score_adj").read_text())
for _ in range(9):
    die_before_parent()
    print(int(Path("/proc/self/oom_score_adj").read_text()) - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    raised = [int(line) for line in done.stdout.split()]
    assert raised[0] == process.OOM_SCORE_RAISE
    assert raised == sorted(raised)
    assert raised[-1] <= 2000, "the kernel's limit is 1000, its lowest value -1000"


LIMIT = """
import resource, sys
sys.path[:0] = {path!r}
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
from socks_tunnel.ops.process import raise_descriptor_limit
print(raise_descriptor_limit(), hard, *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_soft_limit_of_descriptors_becomes_the_hard_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMIT.format(path=sys.path)], capture_output=True, check=True
    )
    returned, hard, soft_now, hard_now = map(int, done.stdout.split())
    assert (returned, soft_now, hard_now) == (hard, hard, hard)


LEAVE = """
import sys, threading, time
sys.path[:0] = {path!r}
from socks_tunnel.ops.process import leave
threading.Thread(target=time.sleep, args=(600,)).start()
print("printed")
leave(7)
"""


def test_leaving_waits_for_no_thread_and_loses_no_line() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LEAVE.format(path=sys.path)],
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (7, b"printed\n")


FREED = """
import sys
sys.path[:0] = {path!r}
from pathlib import Path
from socks_tunnel.ops.process import give_back_freed
def resident(): return int(Path("/proc/self/statm").read_text().split()[1])
blocks = [bytes(2000) for _ in range(10_000)]
del blocks[:-1]  # the last one is above all that was freed, and keeps it in the heap
before = resident()
give_back_freed()
print(before - resident())
"""


def test_memory_that_was_freed_goes_back_to_the_kernel() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FREED.format(path=sys.path)], capture_output=True, check=True
    )
    assert int(done.stdout) > 2000, "pages, of 4,880"
