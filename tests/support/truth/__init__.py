"""What vLLM's own classes hold, beside what the planner says."""
