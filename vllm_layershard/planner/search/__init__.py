"""What the planner looks for where the user leaves it open."""
