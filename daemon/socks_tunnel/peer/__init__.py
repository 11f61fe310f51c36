"""The peer connection: the only package that imports aiortc."""
