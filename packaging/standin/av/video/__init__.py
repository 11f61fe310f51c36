"""Stand-in for PyAV's package of this name; see av/__init__.py."""
