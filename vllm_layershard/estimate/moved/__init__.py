"""Linears to which activations may move: the bytes of both ways, and what is gathered."""
