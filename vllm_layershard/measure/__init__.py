"""Measurements of the devices of this machine, for the planner's hardware profiles."""
