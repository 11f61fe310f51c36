"""The transport over unmodified aiortc: what works wherever aiortc does, at aiortc's speed."""
