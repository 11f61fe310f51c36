"""`socks-tunnel diagnose`: what is wrong, in sentences, and what to do about it.

It looks at the configuration and the host, at what signalling and ICE servers answer, and at a
running instance. A gateway that does not run is started for a moment, on other ports, to see
whether it gets a link. :mod:`socks_tunnel.ops.advice` explains the sentences of failures, and
:mod:`.bundle` packs everything that helps to find a fault, without secrets.
"""
