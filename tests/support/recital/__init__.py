"""Small models that recite a page: trained, so that their answers have no ties.

`model_path()` gives the directory of a DeepSeek-V3, `model_path("dense")` that of a Qwen3 without
experts, built on first use; `python -m recital` prints it.
"""

from recital.cache import model_path

__all__ = ["model_path"]
