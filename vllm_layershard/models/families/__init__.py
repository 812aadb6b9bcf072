"""The families: from a config.json to the linears of its architecture, a family a file."""
