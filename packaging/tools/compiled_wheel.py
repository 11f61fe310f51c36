"""Hatchling's hook: with SOCKS_TUNNEL_COMPILE=1, a wheel contains the compiled data path."""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

sys.path.insert(0, str(Path(__file__).parent))


class CompiledHook(BuildHookInterface):  # type: ignore[type-arg] # hatchling names no argument
    """Adds the extension modules to a wheel. Other builds, such as editable ones, do not change."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compiles before the wheel is put together."""
        if version != "standard" or os.environ.get("SOCKS_TUNNEL_COMPILE") != "1":
            return
        from compile import build

        self.work = tempfile.TemporaryDirectory()
        for path in build(Path(self.work.name)):
            build_data["force_include"][f"{self.work.name}/{path}"] = str(path)
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Removes the compiled files, which are in the wheel by now."""
        del version, build_data, artifact_path
        if hasattr(self, "work"):
            self.work.cleanup()
