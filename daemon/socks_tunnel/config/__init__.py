"""Configuration: pydantic models, the TOML loader, and errors that name file, key and line."""
