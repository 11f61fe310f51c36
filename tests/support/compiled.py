"""Tests that change what compiled code has built in."""

import pytest

from socks_tunnel.ops.compiled import is_compiled


def pure_only(module: str) -> pytest.MarkDecorator:
    """Skips a test that replaces a constant or a method of `module`, if that is compiled."""
    reason = f"replaces what is built into {module}, which is compiled"
    return pytest.mark.skipif(is_compiled(module), reason=reason)
