"""NodeLaunch: what `vllm serve` is told on each node of a deployment that has several.

Sources: vLLM 0.32, engine/arg_utils.py, `create_engine_config`; entrypoints/cli/serve.py; its
documentation, serving/data_parallel_deployment and serving/parallelism_scaling.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from vllm_layershard.estimate import Hardware
from vllm_layershard.models import Sharding

ADDRESS: Final = "ADDRESS"
"""Where vLLM wants the first node's address, which nobody knows here."""


class NodeLaunch(NamedTuple):
    """The nodes of a deployment, the first of which serves.

    `shared` are the flags of every node, and `added` what each node after the first has besides.
    A node has `devices`, of which `ranks` are used. `apart`: each data-parallel engine is launched
    by itself, and these are the nodes of one.
    """

    shared: tuple[str, ...]
    added: tuple[tuple[str, ...], ...]
    ranks: int
    devices: int
    apart: bool = False

    @property
    def nodes(self) -> int:
        """How many nodes are launched."""
        return 1 + len(self.added)


def launch_on_nodes(sharding: Sharding, hardware: Hardware) -> NodeLaunch:
    """How ranks that one node has no room for are launched on several, an engine as it divides.

    vLLM puts whole engines on a node, or the same number of an engine's ranks on each of its nodes.
    """
    layout, devices = sharding.deployment.layout, hardware.devices_a_node
    engine = layout.world_size // layout.dp
    if engine <= devices:
        local = devices // engine
        return NodeLaunch(
            ("--data-parallel-size-local", str(local), "--data-parallel-address", ADDRESS),
            tuple(
                _further(start, min(local, layout.dp - start), local)
                for start in range(local, layout.dp, local)
            ),
            engine * local,
            devices,
        )
    # An engine of a dense model is alone: its first node counts on its own ranks only, the workers
    # of its second one on those of all engines (reconfigure_for_independent_dp_rank, run_headless).
    apart = layout.dp > 1 and not sharding.model.is_moe
    parts = next(n for n in range(2, engine + 1) if not engine % n and engine // n <= devices)
    nodes = parts if apart else parts * layout.dp
    return NodeLaunch(
        ("--nnodes", str(nodes), "--master-addr", ADDRESS),
        tuple(("--node-rank", str(node), "--headless") for node in range(1, nodes)),
        engine // parts,
        devices,
        apart,
    )


def _further(start: int, held: int, local: int) -> tuple[str, ...]:
    """A node of data-parallel ranks from `start`; the last one may hold fewer than the others."""
    fewer = () if held == local else ("--data-parallel-size-local", str(held))
    return ("--headless", "--data-parallel-start-rank", str(start), *fewer)


def notes_on(launch: NodeLaunch, sharding: Sharding, hardware: Hardware) -> tuple[str, ...]:
    """What the user has to do and to fill in."""
    layout = sharding.deployment.layout
    whole = "an engine of the plan" if launch.apart else "the plan"
    notes = [
        f"{whole} takes {launch.nodes} nodes of {launch.devices} {hardware.name}, and vllm serve "
        f"runs on each of them: {ADDRESS} stands for the first node's address, by which the "
        "others reach it"
    ]
    if launch.apart:
        notes.append(
            "vLLM 0.32 has no data parallelism of a dense model whose engine takes several nodes: "
            f"launch each of the {layout.dp} engines as a server of its own, with an {ADDRESS} of "
            "its own"
        )
    if launch.ranks != launch.devices:
        notes.append(
            f"vLLM places {launch.ranks} ranks on a node, since an engine has "
            f"{layout.world_size // layout.dp}; the times count with {launch.devices} on each"
        )
    return tuple(notes)
