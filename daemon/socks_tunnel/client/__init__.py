"""The commands that use a running instance: `wait`, `exec`, `nc`.

These commands are clients: they ask the control socket for the address of the proxy, and speak
SOCKS5 to it. They use plain sockets and threads, because `nc` is started for every `ssh` and has to
start fast.
"""
