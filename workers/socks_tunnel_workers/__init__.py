"""The worker process: SOCKS5 sessions, TCP flows, UDP associations, access policy, dialling."""
