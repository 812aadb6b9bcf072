"""LayerShardConfig: what `additional_config["layer_sharding"]` may say.

Accepted are a list of names, or an object with `layers` and options. Everything that the value
alone decides is checked here, before any model is known.
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import islice
from types import UnionType
from typing import Any, Final, Literal, get_args

from vllm_layershard.errors import ConfigError
from vllm_layershard.never_sharded import refusal_of

KEY = "layer_sharding"
"""The key under which `additional_config` carries the configuration."""

Placement = Literal["round_robin", "striped", "replicated"]
TransportChoice = Literal["auto", "broadcast", "pull"]
TransportName = Literal["broadcast", "pull"]
Move = Literal["weights", "activations", "auto"]

MAX_PREFETCH_STEP = 64
"""A slot is a whole layer: more of them than this is a slip of the pen, not a plan."""


MAX_SLICE_BYTES = 1 << 40
"""No layer is as large, and a copy's length is a machine's number."""


_MAX_FAULTS: Final = 5
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

    def repr_int(self, value: int, level: int) -> str:
        """Python refuses to write a number of several thousand digits."""
        return super().repr_int(value, level) if value.bit_length() < 10_000 else hex(value)[:40]


_REPR = _Repr()
_REPR.maxstring = _REPR.maxother = 80

REMEDIES: Final = {
    "layers": 'name at least one linear, such as ["o_proj", "q_b_proj"]',
    "prefetch_step": f"give a whole number from 0 to {MAX_PREFETCH_STEP}",
    "layer_stride": "give a whole number of at least 1",
    "keep_first": "give true or false",
    "placement": f"choose one of {', '.join(get_args(Placement))}",
    "transport": f"choose one of {', '.join(get_args(TransportChoice))}",
    "slice_bytes": "give a whole number of bytes up to 2**40, or 0 for copies as long as they come",
    "report_dir": "give the path of a directory, or leave it out",
    "verify": "give true or false",
    "token_exchange": 'give a list of names that stand in layers, such as ["o_proj"]',
    "move": f"choose one of {', '.join(get_args(Move))}",
    "move_weights_from": "give a whole number of tokens, at least 1, together with move 'auto'",
}


@dataclass(frozen=True, slots=True)
class LayerShardConfig:
    """The frozen configuration. Types and values are checked at birth.

    `layers` are dotted suffixes of linears, in the order given; `prefetch_step` is how many
    positions ahead of its use a weight starts to move; with `layer_stride` s only the layers whose
    absolute index is a multiple of s are sharded. With `keep_first` the first of them in a pipeline
    stage stays on every rank, and hides what the second one needs. The `striped` placement stores
    1/K of every layer on each rank instead of whole layers on one; `replicated` runs the same ops
    and moves nothing: the control to compare with. A pull copies at most `slice_bytes` from one
    rank before it turns to the next (0: all that it wants of it). In `report_dir` each rank writes
    `layershard-rank{global rank}.json`; `verify` compares a checksum of every layer's first
    arrival with its owner's. The row-parallel linears that `token_exchange` names, some of
    `layers`, are whole on every tensor-parallel rank: the ranks exchange tokens before, and gather
    the results behind. A forward moves what `move` says: the weights to the tokens, or the
    activations to the weights and back; with `auto` the weights if a rank has at least
    `move_weights_from` tokens.

    Raises:
        ConfigError: names the key, the value and the remedy.
    """

    layers: tuple[str, ...]
    prefetch_step: int = 1
    layer_stride: int = 1
    keep_first: bool = False
    placement: Placement = "round_robin"
    transport: TransportChoice = "auto"
    slice_bytes: int = 0
    report_dir: str | None = None
    verify: bool = False
    move: Move = "weights"
    move_weights_from: int | None = None
    token_exchange: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for key in NAME_LISTS:
            if isinstance(getattr(self, key), list):
                object.__setattr__(self, key, tuple(getattr(self, key)))
        faults = few([f"{KEY}.{fault}" for fault in _type_faults(self)])
        faults = faults or [f"{KEY}.{fault}" for fault in _faults(self)]
        if faults:
            raise ConfigError("; ".join(faults))

    def transport_in(self, *, lockstep: bool, paired_gpus: bool = False) -> TransportName:
        """How weights move in a group that runs its forwards together, or does not.

        `auto` broadcasts where it can: among ranks in lockstep, and whole layers. A group of two
        GPUs that map each other's memory (`paired_gpus`) pulls instead: each link has one reader,
        and a copy takes nothing of what computes.
        """
        if self.transport != "auto":
            return self.transport
        if paired_gpus and self.placement == "round_robin":
            return "pull"
        return "broadcast" if lockstep and self.placement != "striped" else "pull"

    @property
    def cuts_rows(self) -> bool:
        """Whether stripes end at rows, so that a product can use them where activations move."""
        return self.placement == "striped" and self.move != "weights"


NAME_LISTS: Final = ("layers", "token_exchange")
"""The keys whose values are lists of names."""

OPTIONS: Final = tuple(field.name for field in fields(LayerShardConfig))
"""The known keys."""


def _one_of(choices: tuple[str, ...]) -> str:
    *others, last = map(repr, choices)
    return f"{', '.join(others)} or {last}"


_TYPES: Final[dict[str, tuple[type | UnionType, str]]] = {
    "prefetch_step": (int, "a valid integer"),
    "layer_stride": (int, "a valid integer"),
    "keep_first": (bool, "a valid boolean"),
    "placement": (str, _one_of(get_args(Placement))),
    "transport": (str, _one_of(get_args(TransportChoice))),
    "slice_bytes": (int, "a valid integer"),
    "report_dir": (str | None, "a valid string"),
    "verify": (bool, "a valid boolean"),
    "move": (str, _one_of(get_args(Move))),
    "move_weights_from": (int | None, "a valid integer"),
}
"""What each value has to be, in the words that schema.py has for JSON."""


def _type_faults(config: LayerShardConfig) -> Iterator[str]:
    """The values of other types, each as `key = value: what it should be; remedy`."""
    first, *others = NAME_LISTS
    yield from _list_faults(first, config.layers)
    for key, (kind, said) in _TYPES.items():
        value = getattr(config, key)
        is_number = kind in (int, int | None)
        if not isinstance(value, kind) or (is_number and isinstance(value, bool)):
            yield f"{key} = {short(value)}: should be {said}; {REMEDIES[key]}"
    for key in others:
        yield from _list_faults(key, getattr(config, key))


def _list_faults(key: str, names: object) -> Iterator[str]:
    if not isinstance(names, tuple):
        yield f"{key} = {short(names)}: should be a list; {REMEDIES[key]}"
        return
    for i, name in enumerate(names):
        if not isinstance(name, str):
            yield f"{key}.{i} = {short(name)}: should be a valid string; {REMEDIES[key]}"


def few(faults: list[str]) -> list[str]:
    """The first of the faults, and how many there are more."""
    more = len(faults) - _MAX_FAULTS
    return faults if more <= 0 else [*faults[:_MAX_FAULTS], f"and {more} more"]


def _faults(config: LayerShardConfig) -> Iterator[str]:
    """What is wrong with the values, each as `key: problem` or `key = value: problem; remedy`."""
    for problem in islice(_name_faults(config.layers), 1):
        yield f"layers: {problem}"
    bounds = {
        "prefetch_step": (0, MAX_PREFETCH_STEP),
        "layer_stride": (1, None),
        "slice_bytes": (0, MAX_SLICE_BYTES),
    }
    for key, (low, high) in bounds.items():
        value, remedy = getattr(config, key), REMEDIES[key]
        if value < low:
            yield f"{key} = {short(value)}: should be greater than or equal to {low}; {remedy}"
        if high is not None and value > high:
            yield f"{key} = {short(value)}: should be less than or equal to {high}; {remedy}"
    for key, known in (
        ("placement", get_args(Placement)),
        ("transport", get_args(TransportChoice)),
        ("move", get_args(Move)),
    ):
        if getattr(config, key) not in known:
            yield f"{key} = {short(getattr(config, key))}: is not known; {REMEDIES[key]}"
    if config.placement == "striped" and config.transport == "broadcast":
        yield (
            "placement = 'striped': a broadcast moves whole layers from one rank; use "
            "transport 'pull' or 'auto'"
        )
    path = config.report_dir
    if path is not None and (not path.strip() or "\0" in path):
        yield f"report_dir: {short(path)} names no directory; {REMEDIES['report_dir']}"
    for problem in islice(_exchange_faults(config.token_exchange, config.layers), 1):
        yield f"token_exchange: {problem}"
    yield from _move_faults(config)


def _move_faults(config: LayerShardConfig) -> Iterator[str]:
    start, move = config.move_weights_from, short(config.move)
    if start is not None and start < 1:
        remedy = REMEDIES["move_weights_from"]
        yield f"move_weights_from = {short(start)}: should be greater than or equal to 1; {remedy}"
    if config.move == "auto" and start is None:
        yield (
            "move_weights_from: is missing; with move 'auto' give the fewest tokens of a rank from "
            "which on weights move"
        )
    if config.move != "auto" and start is not None:
        yield (
            f"move_weights_from = {short(start)}: with move {move} every forward moves the same; "
            "leave it out, or use move 'auto'"
        )
    if config.move == "weights":
        return
    if config.token_exchange:
        names = ", ".join(map(short, config.token_exchange[:_MAX_FAULTS]))
        yield (
            f"move = {move}: token_exchange moves the tokens of {names} already; leave out one of "
            "the two"
        )


def _name_faults(names: tuple[str, ...]) -> Iterator[str]:
    if not names:
        yield f"is empty; {REMEDIES['layers']}"
    for name in names:
        if any(part.split() != [part] for part in name.split(".")):
            yield f"{short(name)} is not a dotted name; write a linear's suffix such as 'o_proj'"
        reason = refusal_of(name)
        if reason is not None:
            yield f"{short(name)} may not be sharded: {reason}; leave it out"
    given = Counter(names)
    yield from _repeated(given)
    for name in names:
        parts = name.split(".")
        for shorter in (".".join(parts[i:]) for i in range(1, len(parts))):
            if shorter in given:
                yield f"{short(name)} is already matched by {short(shorter)}; keep one of the two"


def _exchange_faults(names: tuple[str, ...], layers: tuple[str, ...]) -> Iterator[str]:
    for name in names:
        if name not in layers:
            among = ", ".join(map(short, layers[:_MAX_FAULTS]))
            yield f"{short(name)} is not among layers ({among}); name it there, too, as it is here"
    yield from _repeated(Counter(names))


def _repeated(given: Counter[str]) -> Iterator[str]:
    for name in (name for name, count in given.items() if count > 1):
        yield f"{short(name)} stands there more than once; name it once"


def short(value: Any) -> str:
    """A value as Python writes it, cut to fit a line."""
    shown = _REPR.repr(value)
    return shown if len(shown) <= 80 else shown[:77] + "..."
