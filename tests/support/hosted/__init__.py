"""Real vLLM in a process of the tests' own, without a server."""
