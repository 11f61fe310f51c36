"""The fast path: an aiortc peer connection whose sockets, DTLS records and SCTP are our own.

`udp`, `dtls` and `sctp` are thin shells around or below aiortc's classes; the machines that decide
something (`recovery`, `congestion`, `pmtu`, `reassembly`, `streams`) do no I/O and read no clock.
"""
