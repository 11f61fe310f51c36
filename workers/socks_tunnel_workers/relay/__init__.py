"""Flows between a local socket and the tunnel, the same on both hosts."""
