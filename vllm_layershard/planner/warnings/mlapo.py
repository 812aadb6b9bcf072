"""vllm-ascend's MLAPO, which copies linears of W8A8 models with MLA."""

from __future__ import annotations

from collections.abc import Iterator

from vllm_layershard.models import Sharding, rank_weight_bytes
from vllm_layershard.models.quantization.mlapo import COPIED, mlapo_copies
from vllm_layershard.plan import select


def warnings_on_mlapo(sharding: Sharding) -> Iterator[str]:
    """What it copies on every rank, or what goes without where it is switched off."""
    model, deployment = sharding.model, sharding.deployment
    kept, spared = (
        rank_weight_bytes(model._replace(mlapo=value), deployment) for value in (True, False)
    )
    nbytes = max(a.total - b.total for a, b in zip(kept, spared, strict=True))
    names = " and ".join(COPIED)
    if nbytes and model.mlapo:
        yield (
            f"vllm-ascend's MLAPO keeps copies of {names} on every rank, {nbytes:,} bytes, which "
            "are counted; a plan that names one of the two has MLAPO off"
        )
    elif nbytes:
        yield (
            f"the launch line switches vllm-ascend's MLAPO off (enable_mlapo; before 0.20 "
            f"VLLM_ASCEND_ENABLE_MLAPO=0): it copies {names} before they can move, and the server "
            f"refuses to shard them beside it. {nbytes:,} bytes of copies a rank are spared, and "
            "decodes lose a fused kernel, which no time here counts"
        )
    elif named := [name for name in COPIED if _has_copies(sharding, name)]:
        yield (
            f"{' and '.join(named)}: vllm-ascend's MLAPO copies what is so named on an instance "
            "that takes its cache from another (kv_consumer), and the server refuses to shard it "
            "there: set enable_mlapo false, or leave it out"
        )


def _has_copies(sharding: Sharding, name: str) -> bool:
    """Whether a linear of this name is sharded that dense MLA's MLAPO copies somewhere."""
    linears = sharding.model.linears(sharding.deployment)
    sharded = select(linears, sharding.config.layers)
    named = [x for members in sharded.values() for x in members if x.is_named(name)]
    return any(
        linear in mlapo_copies(x for x in linears if x.layer_id == linear.layer_id)
        for linear in named[:1]
    )
