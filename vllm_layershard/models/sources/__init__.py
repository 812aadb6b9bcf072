"""The sources of a config.json: a directory, the Hugging Face cache, the bundle, the Hub."""
