"""How several processes share a test run: which tests stay together in one process.

pytest-xdist has a mark for that, but with pytest 9.2 it has no effect; so the process that hands out the
tests, which knows nothing of them but their names, goes by the names.
"""

import re

from xdist.scheduler.loadscope import LoadScopeScheduling

_TOGETHER = re.compile(r"tests/packaging/|tests/system/corporate/")

_SCENE = re.compile(r"\[(gateway-deb\d+-endpoint-deb\d+)\]")
"""The pair of hosts that a test of the installed package runs on."""


def group_of(test: str) -> str:
    """Returns the name of the group that a test belongs to, by the test's own name.

    Tests of one group run in one process, in the order of their file: because they rely on it, or
    because they share what takes long to make, such as a booted host or a server. All other tests are a
    group each: what they share, such as a tunnel, is made once in each process.
    """
    if not _TOGETHER.match(test):
        return test
    file, _, name = test.partition("::")
    scene = _SCENE.search(name)
    return f"{file}[{scene[1]}]" if scene else file


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """Hands out group after group, those with the most tests first."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
