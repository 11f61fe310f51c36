"""Other stacks that the tests speak to, where they are installed."""

import os
from typing import NoReturn

import pytest


def no_peer(why: str) -> NoReturn:
    """Leaves a test whose peer is not installed: it is skipped, but fails where INTEROP is `required`.

    `.ci/run` and `make interop` require it, so that a missing package does not pass for a test.
    """
    if os.environ.get("INTEROP") == "required":
        pytest.fail(why)
    pytest.skip(why)
