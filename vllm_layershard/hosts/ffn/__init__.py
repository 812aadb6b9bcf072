"""Dense MLPs over data-parallel ranks on a host: asked for, found, split and computed."""
