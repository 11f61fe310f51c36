"""Replaces aioice's mDNS module until a peer names a host `….local`.

That module imports dnspython, which takes 3 MiB. Gateways and endpoints send addresses. Only
browsers hide their addresses behind such names (draft-ietf-mmusic-mdns-ice-candidates).
"""

import importlib
import sys
from types import ModuleType
from typing import Any, Final

NAME: Final = "aioice.mdns"


class LazyMdns(ModuleType):
    """The names of the module that aioice uses. All other names come from the module itself."""

    MDnsProtocol = object  # used in an annotation

    def is_mdns_hostname(self, name: str) -> bool:
        """Returns whether a candidate's host has to be resolved by mDNS."""
        return name.endswith(".local") and bool(self._module().is_mdns_hostname(name))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._module(), name)

    def _module(self) -> Any:
        if sys.modules.get(NAME) is self:
            del sys.modules[NAME]
        return importlib.import_module(NAME)


def install() -> None:
    """Installs the replacement, unless the module was imported before."""
    sys.modules.setdefault(NAME, LazyMdns(NAME, __doc__))
