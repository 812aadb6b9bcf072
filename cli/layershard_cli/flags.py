"""The flags that commands share, and the values that need reading."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from vllm_layershard.planner.load import MAX_DRAFTED, MAX_SEQUENCES, MAX_TOKENS

_SUFFIXES = {
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
}


def read_tokens(text: str) -> int:
    """A number of tokens as vLLM reads it: `1k` is 1000, `1K` is 1024, `25.6k` is 25,600."""
    return _tokens(text, 1)


def read_cached(text: str) -> int:
    """A number of tokens, of which there may be none."""
    return _tokens(text, 0)


def _tokens(text: str, least: int) -> int:
    match = re.fullmatch(r"(\d{1,12})(\.\d{1,6})?([kmgKMG]?)", text.strip(), re.ASCII)
    if match is None:
        raise typer.BadParameter(f"{text!r} is not a number of tokens such as 8192, 8k or 8K")
    whole, fraction, suffix = match.groups()
    if fraction and suffix not in ("k", "m", "g"):
        raise typer.BadParameter(f"{text!r}: a fraction goes with k, m and g only")
    tokens = int(float(whole + (fraction or "")) * _SUFFIXES.get(suffix, 1))
    if not least <= tokens <= MAX_TOKENS:
        raise typer.BadParameter(f"{text!r}: must be from {least} to {MAX_TOKENS:,} tokens")
    return tokens


def _models(incomplete: str) -> list[str]:
    from layershard_cli.completion import complete_model  # only a shell that completes needs it

    return complete_model(incomplete)


def _devices(incomplete: str) -> list[str]:
    from layershard_cli.completion import complete_hardware

    return complete_hardware(incomplete)


ModelName = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        autocompletion=_models,
        help="A model directory, a config.json, a bundled name (DeepSeek-V3) or a Hub name.",
        show_default=False,
    ),
]
Tp = Annotated[int | None, typer.Option("--tp", help="Tensor-parallel size.  [default: 1]")]
Dp = Annotated[int | None, typer.Option("--dp", help="Data-parallel size.  [default: 1]")]
Pcp = Annotated[
    int | None, typer.Option("--pcp", help="Prefill-context-parallel size.  [default: 1]")
]
Pp = Annotated[int | None, typer.Option("--pp", help="Pipeline-parallel size.  [default: 1]")]
Ep = Annotated[
    bool | None,
    typer.Option("--ep/--no-ep", help="Expert parallelism.  [default: no-ep]"),
]
Layers = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        help="Linears to shard, by dotted suffix; repeat or separate by commas. `auto`: those, "
        "with the smallest stride, that save most and stay hidden (--hide-in).  "
        "[default: the large linears of the attention]",
    ),
]
LayersNamed = Annotated[
    list[str] | None,
    typer.Option(
        "--layers",
        help="Linears to shard, by dotted suffix; repeat or separate by commas.  "
        "[default: the large linears of the attention]",
    ),
]
PrefetchStep = Annotated[
    int | None,
    typer.Option(
        "--prefetch-step", help="How many positions ahead a weight moves, 0 to 64.  [default: 1]"
    ),
]
LayerStride = Annotated[
    int | None, typer.Option("--layer-stride", help="Shard every n-th layer only.  [default: 1]")
]
KeepFirst = Annotated[
    bool,
    typer.Option(
        "--keep-first",
        help="Keep the first layer of each series on every rank, to hide what the second needs.",
    ),
]
PlacementName = Annotated[
    str | None,
    typer.Option(
        "--placement",
        help="round_robin: whole layers; striped: a part of every layer on each rank; replicated: "
        "the control, which moves nothing.  [default: round_robin]",
    ),
]
TransportName = Annotated[
    str | None,
    typer.Option(
        "--transport",
        help="broadcast, pull, or auto: pull where layers are striped or ranks are not in "
        "lockstep.  [default: auto]",
    ),
]
SliceBytes = Annotated[
    int | None,
    typer.Option(
        "--slice-bytes",
        help="The most that a pull copies from one rank before it turns to the next; 0: all.  "
        "[default: 0]",
    ),
]
TokenExchange = Annotated[
    list[str] | None,
    typer.Option(
        "--token-exchange",
        help="Row-parallel linears, some of --layers, that every tensor-parallel rank holds whole: "
        "the ranks exchange tokens before them (FlashComm2). o_proj; repeat or separate by commas.",
        show_default=False,
    ),
]
MoveName = Annotated[
    str | None,
    typer.Option(
        "--move",
        help="What a forward moves: weights, activations, or auto: weights from so many tokens a "
        "rank on, activations below.  [default: weights]",
    ),
]
MoveWeightsFrom = Annotated[
    int | None,
    typer.Option(
        "--move-weights-from",
        help="With --move auto, the fewest tokens a rank whose forwards move weights; left out, "
        "the planner finds them.",
        show_default=False,
    ),
]
MoveWeightsFromGiven = Annotated[
    int | None,
    typer.Option(
        "--move-weights-from",
        help="With --move auto, the fewest tokens a rank whose forwards move weights.",
        show_default=False,
    ),
]
FfnTp = Annotated[
    int | None,
    typer.Option(
        "--ffn-tp",
        help="Data-parallel ranks that split each dense MLP of a model with routed experts "
        "(denseffn_tensor_parallel_size).",
        show_default=False,
    ),
]
HardwareName = Annotated[
    str | None,
    typer.Option(
        "--hardware",
        autocompletion=_devices,
        help="The device to estimate for: a name that `layershard hardware` lists, or a "
        "FILE.json.  [default: H200, assumed]",
    ),
]
Tokens = Annotated[
    int | None,
    typer.Option(
        "--tokens",
        parser=read_tokens,
        metavar="TOKENS",
        help="Prefill tokens on each rank; 1k is 1000, 1K is 1024.  [default: 8192]",
    ),
]
Prompt = Annotated[
    int | None,
    typer.Option(
        "--prompt",
        parser=read_tokens,
        metavar="TOKENS",
        help="New tokens of each prompt of the prefill.  [default: it is one prompt]",
    ),
]
Cached = Annotated[
    int | None,
    typer.Option(
        "--cached",
        parser=read_cached,
        metavar="TOKENS",
        help="Tokens before those of each prompt that are in the cache already.  [default: 0]",
    ),
]
Sequences = Annotated[
    int | None,
    typer.Option(
        "--batch",
        min=1,
        max=MAX_SEQUENCES,
        help="Decode sequences a rank, in one forward.  [default: 64]",
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        parser=read_tokens,
        metavar="TOKENS",
        help="Tokens before the new one of each decode sequence.  [default: 4096]",
    ),
]
HideIn = Annotated[
    list[str] | None,
    typer.Option(
        "--hide-in",
        help="With --layers auto or --check: the phases that must not slow down, of prefill, "
        "decode; repeat or separate by commas.  "
        "[default: prefill]",
    ),
]
KvCacheDtype = Annotated[str, typer.Option("--kv-cache-dtype", help="As vLLM's flag of that name.")]
Mtp = Annotated[
    int | None,
    typer.Option(
        "--mtp",
        min=1,
        max=MAX_DRAFTED,
        help="Count the weights and the cache of the model's own draft (MTP) layers, which then "
        "draft so many tokens a step.",
        show_default=False,
    ),
]
Exact = Annotated[
    bool,
    typer.Option(
        "--exact",
        help="Fetch the safetensors headers from the Hub where they are not at hand, and compare "
        "the stored tensors with the plan.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Timeline = Annotated[
    bool, typer.Option("--timeline", help="Draw compute and movement of a few layers.")
]
LedgerFlag = Annotated[bool, typer.Option("--ledger", help="Show the bytes of every rank.")]
HtmlFile = Annotated[
    str | None,
    typer.Option("--html", metavar="FILE", help="Write the plan as one self-contained page."),
]
TraceFile = Annotated[
    str | None,
    typer.Option("--trace", metavar="FILE", help="Write the timeline for Chrome or Perfetto."),
]
Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Exit with 1 if it does not fit, a rank saves nothing, or a phase of --hide-in does "
        "not hide.",
    ),
]
