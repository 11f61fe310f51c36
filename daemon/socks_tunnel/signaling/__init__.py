"""Signalling: identities, signed envelopes, and the carriers that deliver them to the peer."""
