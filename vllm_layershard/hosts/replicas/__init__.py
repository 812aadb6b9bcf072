"""What replicas read of weights that they do not store."""
