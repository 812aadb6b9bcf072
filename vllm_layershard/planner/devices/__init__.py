"""Refusals of devices: for a quantised model there may be no class on them."""
