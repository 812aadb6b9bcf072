"""What it costs to move activations to a sharded weight, in the place of the weight to them."""
