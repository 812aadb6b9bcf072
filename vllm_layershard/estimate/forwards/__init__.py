"""One forward: what is in it, what it takes, and from how many tokens on it hides what moves."""
