"""Forwards that move tokens, on a host: what excludes them, and their linears."""
