"""The transport over unmodified aiortc, which works wherever aiortc does, at its speed."""
