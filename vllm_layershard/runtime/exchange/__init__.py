"""Tensor-parallel ranks exchange tokens around a linear that is whole on each of them."""
