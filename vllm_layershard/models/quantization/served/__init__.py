"""What vLLM has a class for: weights with their activations, of linears and of routed experts."""
