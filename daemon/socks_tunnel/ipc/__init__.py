"""Unix-socket shell around the IPC frame codec in protocol.ipc."""
