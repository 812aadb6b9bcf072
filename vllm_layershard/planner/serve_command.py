"""The commands that launch a plan, `vllm serve` on each node."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.estimate import Hardware, PhaseName
from vllm_layershard.estimate.forwards.batches import most_tokens, running
from vllm_layershard.models import Batch, Model, Sharding
from vllm_layershard.models.cache.kv_cache import LatentCache

if TYPE_CHECKING:
    from vllm_layershard.planner.node_launch import NodeLaunch

_SEQUENCES: Final = 256
"""That vLLM decodes at once on every device where nobody says; on some it is more.

Source: vLLM 0.32, engine/arg_utils.py, `get_batch_defaults`. Both bounds are an engine's: its
context-parallel ranks share them, and all its pipeline stages one of sequences.
"""

PLACEHOLDER = "MODEL"
"""Where nobody knows what to serve: a config under another name says nothing of its folder."""


def additional_config(
    config: LayerShardConfig, ffn: int = 1, *, plain_rows: bool = False, mlapo: bool = True
) -> str:
    """The shortest `--additional-config` that means this configuration.

    `ffn` data-parallel ranks split each dense MLP; 1: none is split. `plain_rows`: an NPU is to
    keep quantised weights as rows, not in a format of its own, which does not move.
    Without `mlapo` its attention is to keep no copies of linears.
    Source: vllm-ascend 0.23, ascend_config.py, `weight_nz_mode`: 1, its default, tiles them;
    `enable_mlapo`.
    """
    said = {
        field.name: getattr(config, field.name)
        for field in fields(config)
        if getattr(config, field.name) != field.default
    }
    value = said["layers"] if list(said) == ["layers"] else said
    whole = {KEY: value}
    if ffn > 1:
        from vllm_layershard.ffn_config import FFN_KEY  # seldom asked for

        whole[FFN_KEY] = ffn
    if plain_rows:
        whole["weight_nz_mode"] = 0
    if not mlapo:
        whole["enable_mlapo"] = False
    return json.dumps(whole)


def stands_in(model: Model) -> bool:
    """Whether the device takes no checkpoint of this config, but one with the same linears in W8A8.

    Source: vllm-ascend 182b75e, quantization/fp8_config.py, `AscendFp8Config.get_quant_method`,
    which has no class. Another method's formats in fp8 have other names.
    """
    return model.cache_device.is_ascend and model.quantization.startswith("fp8_")


def launch_commands(
    sharding: Sharding,
    kv_cache_dtype: str,
    batches: Mapping[PhaseName, Batch],
    hardware: Hardware,
) -> tuple[str, ...]:
    """A command to copy for each node, quoted for a POSIX shell; those after the first add to it.

    vLLM's own bound on a forward depends on the device, and the plan's forwards may exceed it.
    Empty where the model stands in for another checkpoint.
    """
    if stands_in(sharding.model):
        return ()
    layout, nodes = sharding.deployment.layout, _nodes(sharding, hardware)
    words = ["vllm", "serve", _servable(sharding)]
    for flag, size in (
        ("--tensor-parallel-size", layout.tp),
        ("--data-parallel-size", 1 if nodes is not None and nodes.apart else layout.dp),
        ("--prefill-context-parallel-size", layout.pcp),
        ("--pipeline-parallel-size", layout.pp),
    ):
        if size > 1:
            words += [flag, str(size)]
    if nodes is not None:
        words += nodes.shared
    if sharding.deployment.ep:
        words.append("--enable-expert-parallel")
    if kv_cache_dtype != "auto":
        words += ["--kv-cache-dtype", kv_cache_dtype]
    words += [flag for flag, _ in context_flags(sharding)]
    tokens = layout.pcp * most_tokens(batches.values(), layout.pp)
    words += ["--max-num-batched-tokens", str(tokens)]
    if (sequences := layout.pcp * running(batches["decode"], layout.pp)) > _SEQUENCES:
        words += ["--max-num-seqs", str(sequences)]
    if drafted := sharding.model.drafted:
        speculation = {"method": "mtp", "num_speculative_tokens": drafted}
        words += ["--speculative-config", json.dumps(speculation)]
    model, ffn = sharding.model, sharding.deployment.ffn
    tiled = model.cache_device.is_ascend and model.quantization != "none"
    extra = additional_config(sharding.config, ffn, plain_rows=tiled, mlapo=model.mlapo)
    words += ["--additional-config", extra]
    first = shlex.join(words)
    return (first, *(f"{first} {shlex.join(more)}" for more in (nodes.added if nodes else ())))


def context_flags(sharding: Sharding) -> tuple[tuple[str, str], ...]:
    """Flags without which vLLM refuses prefill-context parallelism of this model, and why.

    Source: vLLM 0.32, v1/worker/gpu/pcp_manager.py, `validate_config`.
    """
    model = sharding.model
    if sharding.deployment.layout.pcp == 1 or model.cache_device.is_ascend:
        return ()
    caches = [s.attention.cache(model.dtype, tp=1) for s in model.blueprint.layers[0]]
    flags = []
    if model.architecture.endswith("ForConditionalGeneration"):
        flags.append(("--language-model-only", "takes no images"))
    if any(isinstance(cache, LatentCache) and cache.sparse for cache in caches):
        flags.append(("-cc.cudagraph_mode=NONE", "runs sparse MLA without CUDA graphs"))
    return tuple(flags)


def _nodes(sharding: Sharding, hardware: Hardware) -> NodeLaunch | None:
    """Of a deployment that one node has no room for."""
    if sharding.deployment.layout.world_size <= hardware.devices_a_node:
        return None
    from vllm_layershard.planner.node_launch import launch_on_nodes  # seldom needed

    return launch_on_nodes(sharding, hardware)


def _servable(sharding: Sharding) -> str:
    """vLLM wants the directory where the user gave its config.json."""
    if not sharding.model.source.startswith("local:"):
        return sharding.model.name
    path = Path(sharding.model.name).expanduser()
    if path.is_dir():
        return str(path)
    return str(path.parent) if path.name == "config.json" else PLACEHOLDER


def launch_warnings(sharding: Sharding, hardware: Hardware) -> tuple[str, ...]:
    """What the user has to fill in."""
    if stands_in(sharding.model):
        return ()
    return (*_on_model(sharding), *_on_nodes(sharding, hardware), *_on_flags(sharding))


def _on_flags(sharding: Sharding) -> Iterator[str]:
    for flag, why in context_flags(sharding):
        yield (f"the launch command has {flag}: under prefill-context parallelism vLLM 0.32 {why}")


def _on_model(sharding: Sharding) -> tuple[str, ...]:
    if _servable(sharding) != PLACEHOLDER:
        return ()
    return (
        f"the launch command says {PLACEHOLDER} where vLLM wants the model's directory: "
        f"{sharding.model.name} is not called config.json, so its folder may hold another model",
    )


def _on_nodes(sharding: Sharding, hardware: Hardware) -> tuple[str, ...]:
    nodes = _nodes(sharding, hardware)
    if nodes is None:
        return ()
    from vllm_layershard.planner.node_launch import notes_on

    return notes_on(nodes, sharding, hardware)
