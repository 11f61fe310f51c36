"""Tests that change what compiled code has built in, or look into it."""

import pytest

from socks_tunnel.ops.compiled import is_compiled


def pure_only(
    module: str, *, because: str = "the test replaces what is built in"
) -> pytest.MarkDecorator:
    """Skips a test if `module` is compiled, where it cannot be written for both kinds."""
    return pytest.mark.skipif(is_compiled(module), reason=f"{module} is compiled: {because}")
