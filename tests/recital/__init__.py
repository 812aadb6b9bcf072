"""A small DeepSeek-V3 that recites a page: trained, so that its answers have no ties.

`model_path()` gives its directory, built on first use; `python -m recital` prints it.
"""

from recital.cache import model_path

__all__ = ["model_path"]
