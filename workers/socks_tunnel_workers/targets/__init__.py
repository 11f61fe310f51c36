"""What an endpoint does for a flow: the access decision, name resolution, dialling, listening."""
