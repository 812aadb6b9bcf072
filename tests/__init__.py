"""Tests: a folder says what a test needs and costs (CONTRIBUTING.md has the list)."""
