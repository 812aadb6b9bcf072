"""Experts: the routed experts of a layer, and how ranks share them out."""

from __future__ import annotations

from typing import NamedTuple

from vllm_layershard.errors import PlanError
from vllm_layershard.models.deployment import Deployment


class Experts(NamedTuple):
    """The routed experts of every layer with a router: gated MLPs, up, gate and down.

    `name` is their module's within the layer, `bias` whether their products have one.
    """

    experts: int
    topk: int
    intermediate: int
    name: str = "mlp.experts"
    bias: bool = False

    def parameters(self, hidden: int) -> int:
        """Weights and biases of all of them in one layer."""
        biases = 2 * self.intermediate + hidden if self.bias else 0
        return self.experts * (3 * self.intermediate * hidden + biases)

    def require_split(self, deployment: Deployment) -> None:
        """Refuse a layout that cannot share them out.

        Raises:
            PlanError: names what does not divide.
        """
        ranks = deployment.expert_ranks
        if deployment.ep and ranks > self.experts:
            raise PlanError(
                f"{ranks} ranks share {self.experts} routed experts: with expert parallelism "
                "every rank needs one; use fewer ranks"
            )
        if not deployment.ep and self.intermediate % ranks:
            raise PlanError(
                f"without expert parallelism {ranks} ranks split every routed expert, and their "
                f"width of {self.intermediate:,} does not divide by that; use --ep or fewer ranks"
            )

    def on_rank(self, deployment: Deployment, rank: int) -> tuple[int, int]:
        """How many a global rank holds of a layer, and how wide they are there.

        Source: vLLM 0.32, `determine_expert_map`.
        """
        ranks = deployment.expert_ranks
        if not deployment.ep:
            return self.experts, self.intermediate // ranks
        spare = deployment.expert_rank(rank) < self.experts % ranks
        return self.experts // ranks + spare, self.intermediate
