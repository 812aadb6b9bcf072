"""FeedForward: what follows an attention: gated MLPs, and a router with its experts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

from vllm_layershard.models.deployment import Deployment
from vllm_layershard.models.shape import Shape, Split, Vector, per_rank

Whole = Literal["never", "always", "unpipelined"]
"""Whether sequence-parallel MoE keeps an MLP whole on every tensor-parallel rank; `unpipelined`:
only where there is one pipeline stage."""


class GatedMlp(NamedTuple):
    """`gate_up_proj` and `down_proj`, as vLLM builds them everywhere; nothing of width 0.

    `name`: its module in the layer. `weighed`: a linear of one row, `<name>_gate`, weighs what it
    puts out. `partial`: tensor-parallel ranks' sums are added up behind it, by its layer.
    `shared_expert`: it runs within vLLM's op of the routed experts of its layer. `group`: where
    ranks would split so many columns that have one scale, expert parallelism leaves it whole on
    each, outside that op; 0: nobody looks.
    """

    name: str
    intermediate: int
    bias: bool = False
    whole: Whole = "never"
    weighed: bool = False
    partial: bool = False
    shared_expert: bool = False
    group: int = 0

    def shapes(self, hidden: int, deployment: Deployment) -> Iterator[Shape]:
        """Its linears in forward order."""
        shared_out, alone = self._is_whole(deployment), self._is_unsplit(deployment)
        whole, beside = shared_out or alone, self.shared_expert and not alone
        if self.weighed:
            gate = Shape(f"{self.name}_gate", (1,), hidden, "none", quantisable=False)
            yield gate._replace(shared_out=shared_out, shared_expert=beside)
        if not self.intermediate:
            return
        width = self.intermediate if whole else per_rank(self.intermediate, deployment.layout.tp)
        rows: Split = "none" if whole else "out"
        columns: Split = "none" if whole else "in"
        up = Shape(f"{self.name}.gate_up_proj", (width, width), hidden, rows, bias=self.bias)
        down = Shape(f"{self.name}.down_proj", (hidden,), width, columns, bias=self.bias)
        yield up._replace(shared_out=shared_out, shared_expert=beside)
        partial = self.partial and not alone
        yield down._replace(shared_out=shared_out, partial=partial, shared_expert=beside)

    def vectors(self) -> Iterator[Vector]:
        """None."""
        yield from ()

    def _is_whole(self, deployment: Deployment) -> bool:
        if self.whole == "never" or not deployment.sequence_parallel_moe:
            return False
        return self.whole == "always" or deployment.layout.pp == 1

    def _is_unsplit(self, deployment: Deployment) -> bool:
        """Source: vLLM 0.32, qwen3_next.py, `_should_replicate_misaligned_shared_expert`."""
        if not self.group or not deployment.ep:
            return False
        return self.intermediate % (deployment.layout.tp * self.group) != 0


class Router(NamedTuple):
    """The linear that chooses experts, which run after it.

    `choices`: the experts, and what else a token may choose. `correction_bias`: a float32 for each
    choice. `shares_out`: the model's class has sequence-parallel MoE, where tensor-parallel ranks
    route a part of the tokens each; in every other layout all of them route all tokens.
    """

    name: str
    choices: int
    dtype: str | None = None
    bias: bool = False
    quantisable: bool = False
    correction_bias: bool = False
    shares_out: bool = False

    def shapes(self, hidden: int, deployment: Deployment) -> Iterator[Shape]:
        """The linear, whole on every rank."""
        yield Shape(
            self.name,
            (self.choices,),
            hidden,
            "none",
            quantisable=self.quantisable,
            bias=self.bias,
            dtype=self.dtype,
            after="experts",
            shared_out=self.shares_out and deployment.sequence_parallel_moe,
        )

    def vectors(self) -> Iterator[Vector]:
        """The correction bias."""
        if self.correction_bias:
            yield Vector(f"{self.name}.e_score_correction_bias", self.choices, "float32")


FeedForward = GatedMlp | Router
