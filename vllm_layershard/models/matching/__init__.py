"""Expressions of a config, and the names of modules that they match."""
