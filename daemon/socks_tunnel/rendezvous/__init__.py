"""The rendezvous service: passes envelopes between hosts without an open port."""
