"""FfnConfig: what `additional_config["denseffn_tensor_parallel_size"]` may say.

It is a key of its own, beside `layer_sharding` or without it. The dense MLPs of a model with routed
experts are then split over groups of data-parallel ranks, as tensor parallelism would split them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from vllm_layershard.config import short
from vllm_layershard.errors import ConfigError

FFN_KEY: Final = "denseffn_tensor_parallel_size"
"""The key under which `additional_config` carries the size."""

_REMEDY: Final = "give how many data-parallel ranks split each dense MLP, or 1 to split none"


@dataclass(frozen=True, slots=True)
class FfnConfig:
    """The number of data-parallel ranks that split each dense MLP; 1 splits none.

    Raises:
        ConfigError: the value is no whole number of at least 1.
    """

    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or isinstance(self.size, bool):
            raise fault(self.size, "should be a valid integer")
        if self.size < 1:
            raise fault(self.size, "should be greater than or equal to 1")

    @property
    def splits(self) -> bool:
        """Whether anything is split."""
        return self.size > 1


def fault(value: object, problem: str) -> ConfigError:
    """The error for a value, in one line: key, value, problem, remedy."""
    return ConfigError(f"{FFN_KEY} = {short(value)}: {problem}; {_REMEDY}")
