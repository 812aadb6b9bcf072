"""Real ranks over gloo, and devices that dawdle."""
