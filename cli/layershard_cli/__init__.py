"""The `layershard` command: presents what plan, models and estimate decide."""

import os

# pydantic looks for plugins in every installed distribution, which takes a third of the whole
# command where vLLM is installed; the command uses none.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
