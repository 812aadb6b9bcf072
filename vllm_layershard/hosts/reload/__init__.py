"""Reloads of a host: one act of all ranks, and nothing left of one that failed."""
