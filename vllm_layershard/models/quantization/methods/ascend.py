"""Reads what ModelSlim states of each module, as vllm-ascend serves it.

Which module has which precision stands in `quant_model_description.json` beside config.json.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final, Literal, NamedTuple

from vllm_layershard.errors import ModelError
from vllm_layershard.models.quantization.choice import Quantization
from vllm_layershard.models.quantization.formats.ascend import Ascend
from vllm_layershard.models.quantization.formats.format import Format
from vllm_layershard.models.quantization.methods.ascend_rows import asked_name, parts_of_type
from vllm_layershard.models.quantization.methods.modelslim import DESCRIBED, Description
from vllm_layershard.models.quantization.names import Names
from vllm_layershard.models.sources.beside import DESCRIPTION
from vllm_layershard.models.sources.config_file import ConfigFile, shown

_FLOAT: Final = "FLOAT"
_EMBEDDINGS: Final = ("embed_tokens", "word_embeddings")
_HEAD: Final = "lm_head"
_DRAFTS_HEAD: Final = ".shared_head."

_FORMATS: dict[str, Format | None] = {
    _FLOAT: None,
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
    """`kinds`: vLLM's name of a module -> precision of its weight; of experts only the first's.

    `plain`: the names of those that are FLOAT, sorted. `names`: with the parts of `model_type`.
    Source: vllm-ascend 182b75e, quantization/modelslim_config.py, `get_quant_method`,
    `is_layer_skipped_ascend` and `get_linear_quant_type`.
    """

    kinds: Mapping[str, str]
    plain: Sequence[str]
    names: Names
    model_type: str

    def linear(self, prefix: str) -> Format | None:
        """By the description's word for it, or for each part of a fused one.

        Raises:
            ModelError: it does not name it, or with an unknown precision.
        """
        return self._of(prefix, self._asked(prefix), "linears")

    def experts(self, prefix: str) -> Format | None:
        """By the words for the first expert's matrices.

        Raises:
            ModelError: as for linears; no row of vllm-ascend's says how they are called.
        """
        asked = asked_name(self.model_type, prefix)
        if self.names.parts(asked) or self._is_plain(asked):
            return self._of(prefix, asked, "experts")
        raise ModelError(
            f"{prefix}: vllm-ascend 182b75e cannot read quantised routed experts of model_type "
            f"{shown(self.model_type)}: its packed_modules_model_mapping does not name their "
            "matrices; give a W8A8 checkpoint of compressed-tensors', or one with FLOAT for them"
        )

    def head(self, prefix: str) -> Format | None:
        """By the description's word for it, as a linear; None where it does not name it.

        Where vLLM's class asks for it, `require_vocabulary` has refused that.
        Source: there, method_adapters.py, `AscendEmbeddingMethod`.

        Raises:
            ModelError: an unknown precision.
        """
        asked = self._asked(prefix)
        names_it = asked in self.kinds or self._is_plain(asked)
        return self._of(prefix, asked, "linears") if names_it else None

    def _asked(self, prefix: str) -> str:
        """Source: there, `quant_prefix_mapper`."""
        within = f"language_model.{prefix}"
        if prefix == _HEAD and prefix not in self.kinds and within in self.kinds:
            return within
        return asked_name(self.model_type, prefix)

    def _of(self, prefix: str, asked: str, modules: Literal["linears", "experts"]) -> Format | None:
        parts = self.names.parts(asked)
        if not parts and self._is_plain(asked):
            return None
        names = parts or (asked,)
        lacking = tuple(name for name in names if name not in self.kinds)
        if len(lacking) == 1 < len(names) and lacking[0].endswith(".v_proj"):
            names = names[:2]  # values that copy the keys: there, `_is_missing_v_shard`
        elif lacking:
            keys = ", ".join(f"{name}.weight" for name in lacking)
            raise ModelError(
                f"{prefix}: {DESCRIPTION} states no precision for {', '.join(lacking)}, and "
                f"vllm-ascend 182b75e ends at the start where a name is missing; add {keys} to the "
                "file, as FLOAT where it is not quantised"
            )
        found = {self.kinds[name] for name in names}
        kind = found.pop()
        if found or kind not in _FORMATS:
            stated = "several precisions" if found else kind
            *others, last_known = _FORMATS
            why = "" if found else f": {_said_of(kind, modules)}"
            raise ModelError(
                f"{prefix}: {DESCRIPTION} states {stated} for {', '.join(names)}{why}; "
                f"supported are {', '.join(others)} and {last_known}, one for all parts of a linear"
            )
        return _FORMATS[kind]

    def _is_plain(self, prefix: str) -> bool:
        """Whether a weight that is FLOAT has a name that begins so."""
        at = bisect_left(self.plain, prefix)
        return at < len(self.plain) and self.plain[at].startswith(prefix)


def _said_of(kind: str, modules: Literal["linears", "experts"]) -> str:
    """Whether vllm-ascend has a class for such modules of a precision that is not read."""
    if kind in _UNREAD[modules]:
        return f"vllm-ascend has a class for such {modules}, and the planner does not read it yet"
    return f"vllm-ascend has no class for such {modules}"


def read_ascend(section: ConfigFile, names: Names) -> Quantization:
    """Read what `modelslim.py` has put in the place of a `quantization_config`.

    Raises:
        ModelError: as `described_by`.
    """
    return Quantization("ascend_w8a8", described_by(section, names))


def described_by(section: ConfigFile, names: Names) -> Described:
    """What a description states, by vLLM's names.

    Raises:
        ModelError: there is no such description, or it quantises an embedding.
    """
    found = section.get(DESCRIBED)
    if not isinstance(found, Description):
        section.fail("quant_method", f"'ascend' needs {DESCRIPTION} beside config.json")
    for name, kind in found.kinds.items():
        if name.endswith(_EMBEDDINGS) and kind != _FLOAT:
            section.fail(
                f"{name}.weight",
                f"is {shown(kind)}, and vllm-ascend 182b75e looks up no tokens in a quantised "
                "embedding (method_adapters.py, `AscendEmbeddingMethod`); state FLOAT",
            )
    mapped = _mapped(found.kinds | _heads_of_drafts(found.kinds), names)
    plain = sorted(name for name, kind in mapped.items() if kind == _FLOAT)
    names = names._replace(fused=parts_of_type(found.model_type, names.fused))
    return Described(mapped, plain, names, found.model_type)


def _heads_of_drafts(kinds: Mapping[str, str]) -> dict[str, str]:
    """The heads of draft layers by the name that vLLM's classes give them.

    Source: vllm-ascend 182b75e, quantization/modelslim_config.py, `_apply_extra_quant_adaptations`.
    """
    return {
        name.replace(_DRAFTS_HEAD, "."): kind
        for name, kind in kinds.items()
        if _DRAFTS_HEAD in name
    }


def _mapped(kinds: Mapping[str, str], names: Names) -> Mapping[str, str]:
    """By vLLM's names.

    Source: vllm-ascend 182b75e, quantization/modelslim_config.py, `apply_vllm_mapper`.
    """
    if not (names.substrings or names.prefixes or names.suffixes):
        return kinds
    return {
        names.of(f"{name}.weight").removesuffix(".weight"): kind for name, kind in kinds.items()
    }
