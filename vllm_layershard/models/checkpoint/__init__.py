"""Checkpoints: what safetensors headers say is stored, beside what the planner expects."""
