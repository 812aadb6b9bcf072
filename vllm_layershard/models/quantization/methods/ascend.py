"""Reads what ModelSlim states of each module, as vllm-ascend serves it.

Which module has which precision stands in `quant_model_description.json` beside config.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.ascend import Ascend
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.methods.modelslim import DESCRIBED, Description
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.sources.beside import DESCRIPTION
from vllm_layershard.models.sources.config_file import ConfigFile

_FORMATS: dict[str, Format | None] = {
    "FLOAT": None,
    "W8A8": Ascend("W8A8"),
    "W8A8_DYNAMIC": Ascend("W8A8_DYNAMIC"),
}


_UNREAD: Final[Mapping[str, tuple[str, ...]]] = {
    "linears": (
        *("W4A4_DYNAMIC", "W4A4_FLATQUANT_DYNAMIC", "W4A4_MXFP4", "W4A4_MXFP4_FLATQUANT"),
        *("W4A8_MXFP", "W8A16", "W8A8FP8_DYNAMIC", "W8A8_MIX", "W8A8_MXFP8"),
    ),
    "experts": (
        *("W4A16", "W4A16_MXFP4", "W4A4_MXFP4", "W4A8_DYNAMIC", "W4A8_MXFP", "W8A8FP8_DYNAMIC"),
        "W8A8_MXFP8",
    ),
}
"""Precisions that vllm-ascend has a class for, and the planner does not read yet.
Source: vllm-ascend 182b75e, quantization/methods/, `register_scheme` with `linear` and `moe`."""


class Described(NamedTuple):
    """`kinds`: module's name -> precision of its weight; of experts only the first's.

    Source: vllm-ascend 5ed63ef, modelslim_config.py, `get_linear_quant_type`.
    """

    kinds: Mapping[str, str]
    names: Names

    def linear(self, prefix: str) -> Format | None:
        """By the description's word for it, or for each part of a fused one.

        Raises:
            ModelError: it does not name it, or with an unknown precision.
        """
        return self._of(prefix, "linears")

    def experts(self, prefix: str) -> Format | None:
        """By the word for the first expert's first matrix."""
        return self._of(f"{prefix}.0.gate_proj", "experts")

    def _of(self, prefix: str, modules: Literal["linears", "experts"]) -> Format | None:
        module = prefix.removeprefix("language_model.")
        names = self.names.parts(module) or (module,)
        found = {self.kinds.get(name) for name in names}
        kind = found.pop()
        if found or kind not in _FORMATS:
            stated = "several precisions" if found else kind or "no precision"
            *others, last_known = _FORMATS
            why = "" if found or kind is None else f": {_said_of(kind, modules)}"
            raise ModelError(
                f"{prefix}: {DESCRIPTION} states {stated} for {', '.join(names)}{why}; "
                f"supported are {', '.join(others)} and {last_known}, one for all parts of a linear"
            )
        return _FORMATS[kind]

    def head(self, prefix: str) -> Format | None:
        """None: vllm-ascend quantises no head."""
        return None


def _said_of(kind: str, modules: Literal["linears", "experts"]) -> str:
    """Whether vllm-ascend has a class for such modules of a precision that is not read."""
    if kind in _UNREAD[modules]:
        return f"vllm-ascend has a class for such {modules}, and the planner does not read it yet"
    return f"vllm-ascend has no class for such {modules}"


def read_ascend(section: ConfigFile, names: Names) -> Quantization:
    """Read what `modelslim.py` has put in the place of a `quantization_config`.

    Raises:
        ModelError: there is no such description.
    """
    found = section.get(DESCRIBED)
    if not isinstance(found, Description):
        section.fail("quant_method", f"'ascend' needs {DESCRIPTION} beside config.json")
    return Quantization("ascend_w8a8", Described(found.kinds, names))
