"""All that moves, on torch without vllm. It obeys a plan and decides nothing."""
