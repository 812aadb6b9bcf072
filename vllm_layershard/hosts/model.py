"""One vLLM model, sharded: find its linears, plan them, and see them through loading.

Note [From construction to the first forward]
While the model is built, each matched linear is released to the meta device as soon as its parent
takes it in, so that no rank ever holds more than one of them. Then the plan is made, and the
owners' linears get memory again; vLLM loads the checkpoint, which is a no-op on meta parameters.
vLLM then processes the modules in one order on every rank: a linear's owner broadcasts its loaded
parameters, every rank runs the quant method on them (so that all its Python-side state exists
everywhere), and the large tensors of those that are not the owner become aliases of slots. After
the last one the ranks compare the final plan, which knows the bytes as processed.
"""

from __future__ import annotations

import atexit
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

from vllm_layershard.config import KEY, LayerShardConfig
from vllm_layershard.errors import HostError
from vllm_layershard.hosts.groups import Groups
from vllm_layershard.hosts.linear_method import ShardedLinearMethod
from vllm_layershard.hosts.settings import layout_of
from vllm_layershard.plan import Linear, Plan, Series, build_plan, no_match, select, series_of
from vllm_layershard.runtime.agreement import agree
from vllm_layershard.runtime.device import Device, device_of
from vllm_layershard.runtime.group import RankGroup
from vllm_layershard.runtime.ops import Place, bind
from vllm_layershard.runtime.report import Report
from vllm_layershard.runtime.series import ShardedSeries
from vllm_layershard.runtime.tensors import describe, materialise, release

if TYPE_CHECKING:
    from vllm.config import VllmConfig

logger = init_logger(f"vllm.{__name__}")

_TOWERS = frozenset({"visual", "vision_tower", "vision_model", "audio_tower", "vision_encoder"})
"""Encoders run when a request brings an image or a sound: never in lockstep."""
