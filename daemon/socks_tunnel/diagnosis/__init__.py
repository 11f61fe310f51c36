"""`socks-tunnel diagnose`: what is wrong, in sentences, and what to do about it.

It looks at the configuration and the host, at what signalling and ICE servers answer, and at a
running instance. A gateway that does not run is started for a moment, on other ports, to see
whether it gets a link. :mod:`.advice` knows what the sentences of failures mean, :mod:`.bundle`
packs everything for whoever is asked for help, without secrets.
"""
