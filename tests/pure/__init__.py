"""Seconds, one core: no rank, no vLLM, no server."""
