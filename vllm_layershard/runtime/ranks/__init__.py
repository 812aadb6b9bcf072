"""Ranks that share: their groups, how they meet, and what they compare."""
