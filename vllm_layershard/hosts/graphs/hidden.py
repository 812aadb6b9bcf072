"""Linears that run within an op of vLLM's, which hides a wait from whoever captures graphs.

Note [Waits ahead of an op]
A compiler cuts a model's graph at our ops, so that what starts in one captured piece is not waited
for in another. It does not look into an op of vLLM's: a wait in there would be captured in the
piece, for a movement that was started outside, and such a capture fails. On a stream of the op's
own it could not end a breakable graph either. So the wait stands where the compiler sees it, and on
the stream of the compute: at the entry of the module that calls the op.

Shared experts run within the op of the routed experts, a linear with an adapter in one of LoRA's
where that has a second stream (VLLM_LORA_ENABLE_DUAL_STREAM). Source: vLLM 0.32,
fused_moe/runner/moe_runner.py, fused_moe/runner/shared_experts.py, lora/layers/base_linear.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from vllm_layershard.hosts.boundary import first_tensor
from vllm_layershard.hosts.names import LORA_DUAL_STREAM, MOE_RUNNER, SHARED_EXPERTS
from vllm_layershard.runtime import ops


def wait_ahead_of_experts(model: nn.Module, sharded: Mapping[str, Any]) -> None:
    """Wait at the entry of an MoE block for those of its linears that run within the experts' op.

    `sharded` has the linears that wait, by prefix, in the order of their waits.

    Raises:
        HostError: this version of vLLM calls shared experts otherwise.
    """
    for path, within in within_experts(model):
        hidden = [linear for linear in sharded.values() if id(linear) in within]
        wait_at_entry(model.get_submodule(path.rpartition(".")[0]), hidden)


def within_experts(model: nn.Module) -> Iterator[tuple[str, set[int]]]:
    """Of each op of routed experts the path of what calls it, and the `id` of all modules within.

    A shared expert that the model's own code calls beside the op is in none.

    Raises:
        HostError: this version of vLLM calls shared experts otherwise.
    """
    runner = MOE_RUNNER.imported()
    for path, module in model.named_modules():
        if isinstance(module, runner):
            SHARED_EXPERTS.of(module)
        shared = getattr(module, "_shared_experts", None)
        if isinstance(shared, nn.Module):
            yield path, {id(each) for each in shared.modules()}


def wait_ahead_of_adapters() -> None:
    """From now on a linear that is wrapped for LoRA waits at the wrapper's entry.

    Without effect where LoRA has no second stream, and on a linear whose wait is elsewhere already.

    Raises:
        HostError: this version of vLLM does not tell whether it has one.
    """
    from vllm import envs

    if not LORA_DUAL_STREAM.of(envs):
        return

    def on_registration(parent: nn.Module, name: str, child: nn.Module | None) -> None:
        method = getattr(child, "quant_method", None)
        if name == "base_layer" and getattr(method, "waits_itself", False):
            wait_at_entry(parent, [child])

    register_module_module_registration_hook(on_registration)


def wait_at_entry(block: nn.Module, linears: Sequence[Any]) -> None:
    """Wait for these linears' weights just before the block runs, and no more within them."""
    if not linears:
        return
    keys = tuple(linear.quant_method.waited_for_by(block) for linear in linears)

    def wait(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_tensor(*args, *kwargs.values())
        for key in keys:
            ops.wait(x, key)

    block.register_forward_pre_hook(wait, with_kwargs=True)
