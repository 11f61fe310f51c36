"""Logins for TURN servers that expire, as coturn's `use-auth-secret` checks them.

The TURN server and this service share a secret, and nothing else. The username contains the
expiry and the owner of the login. The credential proves that its maker knows the secret::

    username    EXPIRY ":" KEY          Unix seconds, and the client's public key in base64
    credential  base64(HMAC-SHA1(secret, username))

Source: draft-uberti-behave-turn-rest-00, section 2.2.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from typing import Final

from socks_tunnel.protocol.rendezvous import TurnServer

LIFETIME: Final = 3600
"""Seconds for which a login is valid. It is renewed after half of that.

A host that may not be here any more keeps its login for so long. coturn asks for a good login when
an allocation is made, and not when it is refreshed, so a link that is relayed outlives its login.
"""

RENEWAL: Final = LIFETIME // 2
"""Seconds after which a client that is still connected gets new logins."""


class TurnLogins:
    """Makes logins for the configured servers. Each server is a list of URLs."""

    def __init__(self, servers: Sequence[tuple[str, ...]], secret: bytes) -> None:
        self._servers = tuple(servers)
        self._secret = secret

    def for_key(self, key: bytes, now: float, until: int = 0) -> tuple[TurnServer, ...]:
        """Returns the servers, with logins for a client's key. `now` is Unix time.

        No login is good any longer than the client may be here: until `until`, if that is not 0.
        """
        ends = int(now) + LIFETIME
        username = f"{min(ends, until) if until else ends}:{base64.b64encode(key).decode()}"
        mac = hmac.new(self._secret, username.encode(), hashlib.sha1).digest()
        credential = base64.b64encode(mac).decode()
        return tuple(TurnServer(urls, username, credential) for urls in self._servers)
