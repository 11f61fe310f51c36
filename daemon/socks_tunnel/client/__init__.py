"""What scripts and people use a running instance with: `wait`, `exec`, `nc`.

These commands are clients: they ask the control socket where the proxy is, and speak SOCKS5 to it.
They use plain sockets and threads, because `nc` is started for every `ssh` and must be there at
once.
"""
