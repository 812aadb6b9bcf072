"""What NCCL is told of a group that moves weights beside the model's own collectives, and needs.

Two communicators at a time need the blocks of both kernels on the device together. What is relied
on was read and not run: torch's binding `ProcessGroupNCCL.Options.config` (its `.pyi` and
test/distributed/test_c10d_nccl.py), and NCCL's user guide ("Using multiple NCCL communicators
concurrently", `ncclConfig_t`, `NCCL_LAUNCH_ORDER_IMPLICIT`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, Final

import torch.distributed as dist

from vllm_layershard.errors import HostError

MAX_CTAS: Final = 8
"""The most blocks of a broadcast's kernel, each of which holds a multiprocessor. NCCL itself takes
24 to 32 of some 140; those that it leaves are the model's own."""

LAUNCH_ORDER: Final = "NCCL_LAUNCH_ORDER_IMPLICIT"

_BOUNDS_SINCE: Final = (2, 17)
_ORDERS_SINCE: Final = (2, 26)

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own: with its format


def options_for(backend: str, timeout: timedelta | None) -> Any | None:
    """The options of a new group of this backend that moves weights; None: the backend's own.

    Raises:
        HostError: NCCL cannot be told how many blocks it may take.
    """
    binding = getattr(dist, "ProcessGroupNCCL", None)
    if binding is None or not uses_nccl(backend):
        return None  # torch says so itself where it was built without NCCL
    return bounded_options(binding, timeout)


def uses_nccl(backend: str) -> bool:
    """Whether NCCL moves anything in a group of this backend: "nccl", or "cpu:gloo,cuda:nccl"."""
    return any(part.rpartition(":")[2].lower() == "nccl" for part in backend.split(","))


def bounded_options(binding: Any, timeout: timedelta | None) -> Any:
    """Options of `binding`, which is torch's ProcessGroupNCCL, with at most MAX_CTAS blocks.

    Raises:
        HostError: this NCCL is too old.
    """
    options, version = binding.Options(), _version_of(binding)
    config = getattr(options, "config", None)
    if config is None or (version is not None and version < _BOUNDS_SINCE):
        said = "is too old" if version is None else f"{_text(version)} is too old"
        raise HostError(
            f"NCCL {said}: it cannot bound the blocks of a broadcast, which runs beside the "
            f"model's own collectives; use a torch with NCCL {_text(_ORDERS_SINCE)} or later"
        )
    config.max_ctas = MAX_CTAS
    if timeout is not None:  # torch warns where it differs from the group's
        options._timeout = timeout
    return options


def order_fault(environ: Mapping[str, str], binding: Any) -> str | None:
    """What is missing for NCCL to keep the operations of two communicators in one order."""
    version = _version_of(binding)
    if version is not None and version < _ORDERS_SINCE:
        return (
            f"NCCL {_text(version)} does not order the operations of several communicators, and "
            "weights are broadcast beside the model's collectives: on a full device ranks may wait "
            f"for each other for ever; use NCCL {_text(_ORDERS_SINCE)} or later, or transport "
            "'pull'"
        )
    if environ.get(LAUNCH_ORDER, "0") in ("", "0"):
        return (
            f"{LAUNCH_ORDER} is not set, and weights are broadcast beside the model's collectives: "
            f"on a full device ranks may wait for each other for ever; set {LAUNCH_ORDER}=1 for "
            "every rank, or use transport 'pull'"
        )
    return None


def warn_of_order() -> None:
    """Log what is missing, once in this process."""
    global _has_warned
    binding = getattr(dist, "ProcessGroupNCCL", None)
    fault = None if binding is None else order_fault(os.environ, binding)
    if fault is not None and not _has_warned:
        _has_warned = True
        logger.warning("Layer sharding: %s", fault)


_has_warned = False


def _version_of(binding: Any) -> tuple[int, ...] | None:
    """Of the library that runs; None where this torch cannot tell."""
    tell = getattr(binding, "get_runtime_nccl_version", None)
    return None if tell is None else tuple(tell())


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
