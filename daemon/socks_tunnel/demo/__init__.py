"""Both roles on this machine, for a first look; `socks-tunnel demo`."""
