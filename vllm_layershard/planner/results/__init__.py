"""What the planner answers, as frozen records whose fields are the keys of the JSON."""
