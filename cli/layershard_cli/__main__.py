"""`python -m layershard_cli`."""

from layershard_cli.main import run

run()
