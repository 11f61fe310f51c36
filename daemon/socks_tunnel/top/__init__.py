"""`socks-tunnel top`: a running instance, live in the terminal."""
