"""Signalling: identities, signed envelopes and the carriers that bring them to the peer."""
