"""Real `vllm serve` processes, the questions they are asked, and their answers compared."""
