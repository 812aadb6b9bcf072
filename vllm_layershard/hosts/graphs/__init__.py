"""What graphs that vLLM captures, and ops that hide what they run, ask of the two ops."""
