"""A question about a model becomes a typed answer, equal to what the CLI prints."""
