"""Warnings that few plans have: each is imported where a plan may have it."""
