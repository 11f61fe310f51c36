"""Other stacks that the tests speak to, where they are installed."""

import os
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).parents[2]


def no_peer(why: str) -> NoReturn:
    """Leaves a test whose peer is not installed: it is skipped, but fails where INTEROP is `required`.

    `.ci/run` and `make interop` require it, so that a missing package does not pass for a test.
    """
    if os.environ.get("INTEROP") == "required":
        pytest.fail(why)
    pytest.skip(why)


def libdatachannel_python() -> str:
    """Returns an interpreter that is said to have aiolibdatachannel, or an empty string."""
    made = ROOT / ".tools" / "libdatachannel" / "bin" / "python"
    named = os.environ.get("LIBDATACHANNEL_PYTHON", "")
    return named or (str(made) if made.exists() else "")
