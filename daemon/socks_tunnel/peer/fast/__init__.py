"""The fast path: an aiortc peer connection whose sockets, DTLS records and SCTP are our own."""
