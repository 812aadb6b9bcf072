"""Layer sharding for vLLM: one copy of a linear weight per group, moved ahead of its use.

Importing this package imports neither torch nor vllm.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
