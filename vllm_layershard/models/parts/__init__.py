"""The attentions and the MLPs that decoder layers are made of, a kind a file."""
