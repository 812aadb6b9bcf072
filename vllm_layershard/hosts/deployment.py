"""How a model's data-parallel engines were launched, as each of them may know.

An engine of a dense model is told that it is alone: before it builds its workers, vLLM sets the
data-parallel size to 1 (ParallelConfig.reconfigure_for_independent_dp_rank). What was asked for is
therefore noted where the configuration is validated, and travels in `additional_config`. That is
part of the key of the compile cache, too: the note holds nothing that differs between two launches.
"""

from __future__ import annotations

import hashlib
import os
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from vllm_layershard.config import KEY

if TYPE_CHECKING:
    from vllm.config import VllmConfig

NOTE = f"{KEY}_launch"
"""The key of `additional_config` under which the note travels."""


class Launch(NamedTuple):
    """Data-parallel ranks: of the model, and of this one `vllm serve`."""

    size: int
    local: int

    @property
    def in_parts(self) -> bool:
        """Whether there is more than this `vllm serve`, each of which may be started again."""
        return self.local < self.size


def note_launch(vllm_config: VllmConfig) -> None:
    """Note the data-parallel sizes; an engine that is told that it is alone changes nothing."""
    parallel = vllm_config.parallel_config
    size, local = parallel.data_parallel_size, parallel.data_parallel_size_local
    if size > 1:
        extra = vllm_config.additional_config
        vllm_config.additional_config = {**extra, NOTE: {"size": size, "local": local}}


def launched_as(vllm_config: VllmConfig) -> Launch:
    """What was noted, or else what the configuration says itself."""
    note, parallel = vllm_config.additional_config.get(NOTE), vllm_config.parallel_config
    if note is not None:
        return Launch(**note)
    return Launch(parallel.data_parallel_size, parallel.data_parallel_size_local)


def deployment_of(vllm_config: VllmConfig) -> str:
    """A short name that all engines of one deployment have, and no other deployment on this node.

    Engines of one `vllm serve` have a port in common that was drawn for this launch. Servers that
    were launched one by one have the port under which they were told to meet. Containers that share
    their memory may each have ports of their own.
    """
    meeting = f"{_network()} {meeting_place(vllm_config)}:{launched_as(vllm_config).size}"
    return hashlib.sha256(meeting.encode()).hexdigest()[:12]


def meeting_place(vllm_config: VllmConfig) -> str:
    """The address and port that all engines of the deployment were given."""
    parallel, in_parts = vllm_config.parallel_config, launched_as(vllm_config).in_parts
    port = parallel.data_parallel_rpc_port if in_parts else parallel.data_parallel_master_port
    return f"{parallel.data_parallel_master_ip}:{port}"


def _network() -> str:
    """The network in which this process's ports are."""
    try:
        return os.readlink("/proc/self/ns/net")
    except OSError:
        return ""


def reaches_other_nodes(parallel: Any) -> bool:
    """Whether the configuration tells that ranks will be on other nodes.

    Parts of a deployment may be launched on one node: then its address is a loopback one.
    """
    parts = parallel.data_parallel_size_local < parallel.data_parallel_size or parallel.nnodes > 1
    return parts and not (
        _is_loopback(parallel.data_parallel_master_ip) and _is_loopback(parallel.master_addr)
    )


def _is_loopback(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
