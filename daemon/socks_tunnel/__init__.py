"""socks-tunnel: SOCKS5 on loopback, carried over a WebRTC data channel to a corporate network."""

__version__ = "0.1.0"
