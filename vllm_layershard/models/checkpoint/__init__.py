"""What safetensors headers say is stored, beside what the planner expects."""
