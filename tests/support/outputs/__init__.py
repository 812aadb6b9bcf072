"""What the planner prints, before a change and after it: `make outputs REV=COMMIT`."""
