"""LayerShardConfig: what `additional_config["layer_sharding"]` may say.

Accepted are a list of names, or an object with `layers` and options. Everything that the value
alone decides is checked here, before any model is known.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from vllm_layershard.errors import ConfigError

KEY = "layer_sharding"
"""The key under which `additional_config` carries the configuration."""

Placement = Literal["round_robin", "replicated"]
Transport = Literal["auto", "broadcast"]

MAX_PREFETCH_STEP = 64
"""A slot is a whole layer: more of them than this is a slip of the pen, not a plan."""

_MAX_FAULTS = 5
"""More of them in one message help nobody."""


class _Repr(reprlib.Repr):
    """Cuts what is deep or long before it is written, and says null, true and false as JSON does.

    The value may be anything that JSON can say, and the user wrote it as JSON.
    """

    def repr_NoneType(self, value: None, level: int) -> str:
        """Named after the type, as reprlib wants it."""
        return "null"

    def repr_bool(self, value: bool, level: int) -> str:
        """Named after the type, as reprlib wants it."""
        return "true" if value else "false"


_REPR = _Repr()
_REPR.maxstring = _REPR.maxother = 80

_NEVER_SHARDED = {
    "kv_b_proj": "attention absorbs it and reads its weight outside the linear, only for prefills",
    "gate": "the router is read by the fused MoE kernels and is small",
    "router": "the router is read by the fused MoE kernels and is small",
    "lm_head": "it is not a hidden layer's linear: there is nothing to hide its movement behind",
    "embed_tokens": "an embedding is no linear, and there is nothing to hide its movement behind",
    "wte": "an embedding is no linear, and there is nothing to hide its movement behind",
    "experts": "routed experts are distributed by expert parallelism, not by layer sharding",
    "w13_weight": "routed experts are distributed by expert parallelism, not by layer sharding",
    "w2_weight": "routed experts are distributed by expert parallelism, not by layer sharding",
}

_REMEDIES = {
    "layers": 'name at least one linear, such as ["o_proj", "q_b_proj"]',
    "prefetch_step": f"give a whole number from 0 to {MAX_PREFETCH_STEP}",
    "layer_stride": "give a whole number of at least 1",
    "placement": f"choose one of {', '.join(get_args(Placement))}",
    "transport": f"choose one of {', '.join(get_args(Transport))}",
    "report_dir": "give the path of a directory, or leave it out",
    "verify": "give true or false",
}


def refusal_of(name: str) -> str | None:
    """Why a linear of this dotted name may never be sharded, or None if it may."""
    parts = name.split(".")
    if "experts" in parts:
        return _NEVER_SHARDED["experts"]
    return _NEVER_SHARDED.get(parts[-1])


class LayerShardConfig(BaseModel):
    """The validated, frozen configuration. Unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    layers: tuple[str, ...]
    """Dotted suffixes of the linears to shard, in the order given."""
    prefetch_step: Annotated[int, Field(ge=0, le=MAX_PREFETCH_STEP)] = 1
    """How many positions ahead of its use a weight starts to move."""
    layer_stride: Annotated[int, Field(ge=1)] = 1
    """Shard only the layers whose absolute index is a multiple of this."""
    placement: Placement = "round_robin"
    """`replicated` runs the same ops and moves nothing: the control to compare with."""
    transport: Transport = "auto"
    report_dir: str | None = None
    """Where each rank writes `layershard-rank{global rank}.json`."""
    verify: bool = False
    """Compare a checksum of every layer's first arrival with its owner's."""

    @field_validator("report_dir")
    @classmethod
    def _a_directory_with_a_name(cls, path: str | None) -> str | None:
        if path is not None and (not path.strip() or "\0" in path):
            raise ValueError(f"{_short(path)} names no directory; {_REMEDIES['report_dir']}")
        return path

    @field_validator("layers", mode="before")
    @classmethod
    def _a_list_of_names(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @field_validator("layers")
    @classmethod
    def _names_that_may_be_sharded(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if not names:
            raise ValueError(f"is empty; {_REMEDIES['layers']}")
        for name in names:
            if any(part.split() != [part] for part in name.split(".")):
                raise ValueError(
                    f"{_short(name)} is not a dotted name; write a linear's suffix such as 'o_proj'"
                )
            reason = refusal_of(name)
            if reason is not None:
                raise ValueError(f"{_short(name)} may not be sharded: {reason}; leave it out")
        given = Counter(names)
        repeated = [name for name, count in given.items() if count > 1]
        if repeated:
            raise ValueError(f"{_short(repeated[0])} stands there more than once; name it once")
        for name in names:
            parts = name.split(".")
            for shorter in (".".join(parts[i:]) for i in range(1, len(parts))):
                if shorter in given:
                    raise ValueError(
                        f"{_short(name)} is already matched by {_short(shorter)}; "
                        "keep one of the two"
                    )
        return names

    @classmethod
    def parse(cls, value: Any) -> LayerShardConfig:
        """Validate the value of the `layer_sharding` key.

        Raises:
            ConfigError: one line for each fault, each naming the key, the value and the remedy.
        """
        if isinstance(value, list):
            value = {"layers": value}
        if not isinstance(value, dict):
            raise ConfigError(
                f"{KEY} = {_short(value)}: must be a list of names or an object; "
                f'write for example {{"{KEY}": ["o_proj", "q_b_proj"]}}'
            )
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            faults = [_fault(detail, value) for detail in error.errors()]
            more = [f"and {len(faults) - _MAX_FAULTS} more"] * (len(faults) > _MAX_FAULTS)
            raise ConfigError("; ".join(faults[:_MAX_FAULTS] + more)) from None


def _fault(detail: Any, value: dict[str, Any]) -> str:
    """One fault as a sentence: key, value, remedy."""
    path = [str(part) for part in detail["loc"] or [detail["input"]]]  # no loc: an odd key
    key = path[0]
    where = ".".join([KEY, *(part if _is_plain(part) else _short(part) for part in path)])
    if key not in LayerShardConfig.model_fields:
        known = ", ".join(LayerShardConfig.model_fields)
        return f"{where}: unknown key; the known ones are {known}"
    if detail["type"] == "missing":
        return f"{where}: is missing; {_REMEDIES[key]}"
    if detail["type"] == "value_error":
        return f"{where}: {detail['ctx']['error']}"
    what = str(detail["msg"]).removeprefix("Input ")
    return f"{where} = {_short(detail.get('input', value))}: {what}; {_REMEDIES[key]}"


def _is_plain(part: str) -> bool:
    return part.replace("_", "").isalnum() and len(part) <= 80


def _short(value: Any) -> str:
    """A value as Python writes it, cut to fit a line."""
    shown = _REPR.repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
