"""Dense MLPs that data-parallel ranks split, as far as the planner knows them."""
