"""Flows between a local socket and the tunnel, for gateway and endpoint."""
