"""MoveRule: whether a forward moves the weights to the tokens, or the tokens to the weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

from vllm_layershard.config import KEY, LayerShardConfig, Move
from vllm_layershard.errors import PlanError
from vllm_layershard.plan.layout import ParallelLayout


class MoveRule(NamedTuple):
    """What every rank decides alike, from token counts that all have agreed on beforehand."""

    move: Move
    weights_from: int | None

    def moves_weights(self, counts: Sequence[int]) -> bool:
        """Whether a forward of so many tokens on each rank moves weights."""
        if self.weights_from is None:
            return self.move == "weights"
        return max(counts) >= self.weights_from

    def moved(self, counts: Sequence[int]) -> Literal["weights", "activations"]:
        """What a forward of so many tokens on each rank moves."""
        return "weights" if self.moves_weights(counts) else "activations"

    @property
    def most_tokens(self) -> int:
        """Of a rank, in a forward that moves tokens, where others move weights; 0: in none."""
        return 0 if self.weights_from is None else self.weights_from - 1


def move_rule(config: LayerShardConfig) -> MoveRule:
    """The rule that the configuration gives."""
    return MoveRule(config.move, config.move_weights_from)


def require_agreed_counts(layout: ParallelLayout, config: LayerShardConfig) -> None:
    """Refuse a layout whose ranks do not know each other's tokens, where tokens may move.

    Raises:
        PlanError: says why, and the remedy.
    """
    if config.move == "weights":
        return
    asked = f"{KEY}.move = {config.move!r}"
    if not layout.in_lockstep:
        raise PlanError(
            f"{asked}: the {layout.dp} data-parallel ranks of a dense model are engines of their "
            "own, which never wait for each other; leave it out, or use tensor parallelism alone"
        )
    if layout.pcp > 1:
        raise PlanError(
            f"{asked}: prefill-context-parallel ranks have token counts of their own, on which "
            "nobody has agreed; leave out one of the two"
        )


def unmovable(
    layout: ParallelLayout, config: LayerShardConfig, splitting: Iterable[str], *, on_npu: bool
) -> Iterator[str]:
    """Why tokens cannot move, one reason each; none where they can, or only weights move.

    `splitting` names what has the linears run on shards of the tokens.
    """
    yield from on_shards(splitting, config)
    if on_npu and layout.dp > 1 and config.move != "weights":
        # Source: vllm-ascend 0.23, attention/mla_v1.py and sfa_v1.py: `attn_metadata is None`.
        yield (
            f"{KEY}.move = {config.move!r}: vllm-ascend's dummy batches leave out attention's "
            "linears, for which ranks that are busy would wait; use move 'weights', or tensor "
            "parallelism alone"
        )


def on_shards(splitting: Iterable[str], config: LayerShardConfig) -> Iterator[str]:
    """Why tokens cannot move beside each of `splitting`; none where only weights move."""
    for setting in splitting if config.move != "weights" else ():
        yield (
            f"{KEY}.move = {config.move!r}: with {setting} linears run on shards of the tokens, "
            "whose numbers the ranks do not tell each other; leave out one of the two"
        )


def hidden_in_experts(prefix: str, config: LayerShardConfig) -> str:
    """Why the tokens of a linear below shared experts cannot move on a GPU or NPU.

    A captured graph cannot end within an op of vLLM's, and the op may run them on a second stream,
    beside the model's own collectives. Source: vLLM 0.32, fused_moe/runner/shared_experts.py.
    """
    return (
        f"{KEY}.move = {config.move!r}: {prefix} runs within vLLM's op of the routed experts, on a "
        "GPU on a stream of its own, where ranks cannot exchange tokens; leave it out, or use "
        "move 'weights'"
    )


def counts_in_group(
    layout: ParallelLayout, ranks: Sequence[int], by_data_parallel: Sequence[int]
) -> tuple[int, ...]:
    """The tokens of each of these global ranks, where its data-parallel rank has so many.

    Tensor-parallel ranks of one engine have the same tokens. `ranks` may be counted over several
    deployments.
    """
    engine = layout.pp * layout.pcp * layout.tp
    return tuple(by_data_parallel[rank % layout.world_size // engine] for rank in ranks)
