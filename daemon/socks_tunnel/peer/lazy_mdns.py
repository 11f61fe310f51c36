"""Stands in for aioice's mDNS until a peer names a host `….local`.

aioice imports dnspython for it, which takes 3 MiB. Gateways and endpoints send addresses; only a
browser hides its own behind such names (draft-ietf-mmusic-mdns-ice-candidates).
"""

import importlib
import sys
from types import ModuleType
from typing import Any, Final

NAME: Final = "aioice.mdns"


class LazyMdns(ModuleType):
    """What aioice uses of the module. Whatever else is asked for is the module's own."""

    MDnsProtocol = object  # in an annotation

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
    """Puts the stand-in where aioice imports it from, unless the module was imported before."""
    sys.modules.setdefault(NAME, LazyMdns(NAME, __doc__))
