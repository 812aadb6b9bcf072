"""The tensors that a module holds directly: describe them, release them, point them elsewhere.

Quant methods keep weights as parameters, buffers or plain attributes; all three count. Bytes are
taken to lie in rows without gaps: `check_formats` refuses others before they come here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from vllm_layershard.plan import TensorSpec


def held(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's own tensors by attribute name, submodules excluded; each object once."""
    found: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for place in _places(module):
        for name, value in place.items():
            if isinstance(value, torch.Tensor) and id(value) not in seen:
                seen.add(id(value))
                found[name] = value
    return found


def describe(module: nn.Module) -> tuple[TensorSpec, ...]:
    """Specs of all tensors that the module holds, in a fixed order."""
    return tuple(
        TensorSpec(
            name=name,
            shape=tuple(tensor.shape),
            dtype=str(tensor.dtype).removeprefix("torch."),
            nbytes=tensor.numel() * tensor.element_size(),
            stride=tuple(tensor.stride()),
        )
        for name, tensor in sorted(held(module).items())
    )


def release(module: nn.Module) -> None:
    """Move the module's parameters to the meta device: memory is freed, loaders become no-ops.

    Class, attributes and loaders of each parameter are kept, as vLLM's `to_meta_tensor` does.
    """
    for name, param in held(module).items():
        if isinstance(param, nn.Parameter):
            _replace(module, name, _dressed(param.data.to("meta"), param))


def materialise(module: nn.Module, device: torch.device, *, leave: tuple[str, ...] = ()) -> None:
    """Give each meta parameter but `leave` memory of the same shape and stride, all zero bytes."""
    for name, param in held(module).items():
        if isinstance(param, nn.Parameter) and param.is_meta and name not in leave:
            real = torch.empty_strided(
                param.size(), param.stride(), dtype=param.dtype, device=device
            )
            byte_line(real).zero_()
            _replace(module, name, _dressed(real, param))


def point(module: nn.Module, name: str, target: torch.Tensor) -> None:
    """Make the module's tensor `name` an alias of `target`; its former memory is let go."""
    former = held(module)[name]
    if isinstance(former, nn.Parameter):
        _replace(module, name, _dressed(target.detach(), former))
    else:
        _replace(module, name, target)


def _replace(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put `tensor` in the place of `name`, and of every other name of the same object."""
    former = held(module)[name]
    for place in _places(module):
        for key in [key for key, value in place.items() if value is former]:
            place[key] = tensor


def _places(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """Where a module keeps tensors: as parameters, as buffers, and as plain attributes."""
    return module._parameters, module._buffers, vars(module)


def tie(root: nn.Module, module: nn.Module) -> str | None:
    """The path under `root` of another module that holds a parameter of `module`'s, if one does."""
    mine = {id(param) for param in module._parameters.values() if param is not None}
    for path, other in root.named_modules():
        shared = mine & {id(param) for param in other._parameters.values()}
        if other is not module and shared:
            return path
    return None


def _dressed(tensor: torch.Tensor, like: nn.Parameter) -> nn.Parameter:
    """`tensor`, a fresh object, as a parameter with the class and attributes of `like`."""
    tensor.__class__ = like.__class__
    tensor.__dict__ = like.__dict__.copy()
    return tensor.requires_grad_(like.requires_grad)  # type: ignore[return-value]


def empty_like(tensors: Iterable[torch.Tensor], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Uninitialised plain tensors of the same shapes, strides and dtypes on `device`."""
    return tuple(
        torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=device) for t in tensors
    )


def flat(tensor: torch.Tensor) -> torch.Tensor:
    """A one-dimensional alias over all bytes of a dense tensor, whatever its strides.

    A collective wants contiguous memory. Of bytes on the CPU and CUDA: neither gloo nor NCCL knows
    all dtypes of weights. An NPU's collectives are given the tensor itself where they can be.
    """
    if tensor.device.type in ("cpu", "cuda"):
        return byte_line(tensor)
    if tensor.is_contiguous():
        return tensor.detach()
    return tensor.detach().as_strided((tensor.numel(),), (1,))


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the distinct storages behind the tensors, as really allocated."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(storages.values())


def byte_line(tensor: torch.Tensor) -> torch.Tensor:
    """A flat alias over all bytes of a dense tensor, whatever its strides: [nbytes] of uint8."""
    return tensor.detach().as_strided((tensor.numel(),), (1,)).view(torch.uint8)


def bytes_of(tensor: torch.Tensor) -> bytes:
    """A copy of the tensor's bytes in logical order. Blocks until they are there.

    torch's own ways to them go through numpy, which torch can be installed without.
    """
    there = tensor.detach().cpu().contiguous()
    nbytes = there.numel() * there.element_size()
    if not nbytes:
        return b""
    return bytes((ctypes.c_ubyte * nbytes).from_address(there.data_ptr()))


def placed_like(tensor: torch.Tensor, line: torch.Tensor) -> torch.Tensor:
    """The bytes `line`, [nbytes] of uint8, seen with the shape, strides and dtype of `tensor`."""
    return line.view(tensor.dtype).as_strided(tensor.size(), tensor.stride())


def cut(tensors: Iterable[torch.Tensor], start: int, end: int) -> list[torch.Tensor]:
    """Bytes [start, end) of dense tensors laid end to end: flat uint8 aliases of those in them."""
    found = []
    first = 0
    for line in map(byte_line, tensors):
        piece = line[max(0, start - first) : max(0, end - first)]
        if piece.numel():
            found.append(piece)
        first += line.numel()
    return found


def join(lines: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Flat byte tensors end to end in memory of their own; None for none."""
    return torch.cat(list(lines)) if lines else None
