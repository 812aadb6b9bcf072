"""Forwards that move tokens to the weights and back, instead of the weights to the tokens."""
