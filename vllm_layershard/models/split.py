"""Split: whether tensor parallelism divides what it splits."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_layershard.errors import PlanError


def require_divisible(tp: int, sizes: Mapping[str, int]) -> None:
    """Refuse a `tp` that does not divide every size; the keys are those of config.json.

    Raises:
        PlanError: names the first that it does not.
    """
    for key, size in sizes.items():
        if size % tp:
            raise PlanError(f"tp = {tp}: does not divide {key} = {size:,}; choose one that does")
