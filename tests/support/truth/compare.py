"""Truth: what vLLM's own classes hold, and whether the planner says the same, to the byte."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from truth.asking import answers_of
from vllm_layershard.errors import ModelError, PlanError
from vllm_layershard.models import CacheDevice, Deployment, Model, read_model
from vllm_layershard.models.draft_bytes import draft_heads
from vllm_layershard.models.layer_weights import layer_linears
from vllm_layershard.models.quantization.described_vocabulary import asked_embedding
from vllm_layershard.models.quantization.groups import CLASSES
from vllm_layershard.models.quantization.names import names_of
from vllm_layershard.plan import ParallelLayout, stage_layers

CONFIGS = Path(__file__).parents[3] / "vllm_layershard" / "models" / "configs"

CACHE_BYTES = 256 << 30
"""As in vllm_inventory.py."""

ASCEND = CacheDevice(capability=None)

LAYOUTS = ((1, 1, False), (2, 1, False), (8, 1, False), (2, 1, True), (8, 1, True))
"""(tp, dp, ep): tensor parallelism of 1, 2 and 8, with and without expert parallelism."""
WITH_DP = (*LAYOUTS, (1, 2, True), (2, 2, True), (1, 2, False))


ON_CUDA = ("DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")
"""They have another class there, which the planner reads: it leaves all sums to its norms."""


@dataclass(frozen=True, slots=True)
class Case:
    """A real config.json with some of its values changed, on some layouts.

    `config` is the name of a bundled one, or what another states (stated.py). `text` are changes
    within its text_config. `drafted`: tokens that its own draft layers draft.

    `text_class`: its text_config alone is built, as this architecture: the multimodal class around
    it needs packages that are not here. `refused`: words of what vLLM says where it builds none.
    """

    config: str | Mapping[str, Any]
    changes: Mapping[str, Any] = field(default_factory=dict)
    layouts: tuple[tuple[int, int, bool], ...] = WITH_DP
    text_class: str | None = None
    text: Mapping[str, Any] = field(default_factory=dict)
    drafted: int = 0
    refused: str = ""

    def stated(self) -> dict[str, Any]:
        """The config as it is published."""
        if isinstance(self.config, str):
            read: dict[str, Any] = json.loads((CONFIGS / f"{self.config}.json").read_text())
            return read
        return dict(self.config)

    def write(self, directory: Path) -> Path:
        """The changed config; a change to None removes a key. `auto_map` names code: never run."""
        config = self.stated()
        if self.text:
            config |= {"text_config": config["text_config"] | dict(self.text)}
        if self.text_class is not None:
            config = config["text_config"] | {"architectures": [self.text_class]}
        config.pop("auto_map", None)
        changed = config | dict(self.changes)
        removed = {key for key, value in self.changes.items() if value is None}
        kept = {key: value for key, value in changed.items() if key not in removed}
        directory.mkdir(parents=True)
        (directory / "config.json").write_text(json.dumps(kept))
        return directory


def names(cases: Mapping[str, Case]) -> list[str]:
    """`case tp2 dp1 ep`, one for each layout of each case."""
    return [name for case in cases for name, *_ in _named(case, cases[case])]


def _named(name: str, case: Case) -> Iterator[tuple[str, int, int, bool]]:
    for tp, dp, ep in case.layouts:
        yield f"{name} tp{tp} dp{dp}{' ep' if ep else ''}", tp, dp, ep


class Truth:
    """All cases of one test file, built by vLLM in one process."""

    def __init__(self, cases: Mapping[str, Case], root: Path) -> None:
        self._asked = {}
        self._drafted = {}
        self._refused = {}
        for name, case in cases.items():
            directory = case.write(root / name)
            for full, tp, dp, ep in _named(name, case):
                deployment = Deployment(ParallelLayout(tp=tp, dp=dp), ep=ep)
                self._asked[full] = (directory, deployment)
                self._drafted[full] = case.drafted
                self._refused[full] = case.refused
        self._inventories = _built_by_vllm(self._asked, self._drafted, self._refused)

    def check(self, name: str) -> None:
        """Names, shapes, dtypes, strides, layouts, total bytes and cache bytes are equal."""
        directory, deployment = self._asked[name]
        truth = self._inventories[name]
        if self._refused[name]:
            assert self._refused[name] in truth.get("refused", "nothing")
            with pytest.raises((ModelError, PlanError)):
                read_model(str(directory)).weight_bytes(deployment, rank=0)
            return
        model = read_model(str(directory))._replace(drafted=self._drafted[name])
        _check_names(model, deployment, truth)
        planned = {
            linear.prefix: {
                "prefix": linear.prefix,
                "tp_replicated": linear.tp_replicated,
                "tensors": sorted(
                    [t.name, list(t.shape), t.dtype, list(t.stride)] for t in linear.tensors
                ),
            }
            for linear in model.linears(deployment)
        }
        assert planned == truth["linears"]
        if model.architecture not in ON_CUDA and not deployment.sequence_parallel_moe:
            assert sorted(_partial(model, deployment)) == sorted(truth["partial"])
        held = model.weight_bytes(deployment, rank=0)
        assert held.total - held.derived == truth["total_bytes"]
        layers = range(model.num_layers)
        per_token = model.kv_bytes_per_token("auto", layers, deployment)
        assert per_token == truth["kv_bytes_per_token"]
        assert model.state_bytes_per_sequence(layers, deployment) == truth["state_bytes"]
        if model.blueprint.longest is None:  # it is not read, but vLLM's is
            longest = truth["longest"]
            model = model._replace(blueprint=replace(model.blueprint, longest=longest))
        _check_tokens(model, deployment, truth["engine_tokens"])
        if truth["state_bytes"]:
            _check_on_ascend(model._replace(cache_device=ASCEND), deployment, truth)


def _check_on_ascend(model: Model, deployment: Deployment, truth: Mapping[str, Any]) -> None:
    """Tokens beside states in vllm-ascend's pages, or a refusal where its server ends."""
    if truth["ascend_tokens"] is not None:
        _check_tokens(model, deployment, truth["ascend_tokens"])
        return
    with pytest.raises(PlanError, match="whole multiples"):
        model.cache_tokens(CACHE_BYTES, "auto", range(model.num_layers), deployment)


def _check_tokens(model: Model, deployment: Deployment, engine: Mapping[str, int]) -> None:
    """An engine's tokens, of one stage and of several."""
    for pp, tokens in engine.items():
        sizes = deployment.layout
        staged = replace(deployment, layout=ParallelLayout(tp=sizes.tp, dp=sizes.dp, pp=int(pp)))
        held = [
            model.cache_tokens(CACHE_BYTES, "auto", layers, staged)
            for layers in stage_layers(model.num_layers, int(pp))
        ]
        assert min(one for one in held if one is not None) == tokens


def _check_names(model: Model, deployment: Deployment, truth: Mapping[str, Any]) -> None:
    """What vLLM calls the head, a routed expert's matrices, and the classes of linears.

    And which heads and embeddings are told of a quantisation, and by what name.
    """
    b = model.blueprint
    assert truth["heads"] == [b.head]
    embedding = asked_embedding(model.architecture, b.stem)
    asked = [b.head] * b.head_quantisable + [embedding] * (embedding is not None)
    assert truth["told"] == sorted(asked)
    assert truth["draft_heads"] == (list(draft_heads(b)) if model.drafted else [])
    expert = list(names_of(model.architecture).expert)
    assert all(said == expert for said in truth["experts"])
    for layer_id in range(model.num_layers):
        for segment in layer_linears(model.blueprint, layer_id, deployment):
            for shape, linear in segment:
                if shape.quantisable:
                    last = linear.prefix.rpartition(".")[2]
                    assert CLASSES[last] == truth["classes"][linear.prefix]


def _partial(model: Model, deployment: Deployment) -> Iterator[str]:
    """The linears of whose sums each tensor-parallel rank has a part."""
    for layer_id in range(model.num_layers):
        for segment in layer_linears(model.blueprint, layer_id, deployment):
            for shape, linear in segment:
                if shape.partial and not linear.tp_replicated:
                    yield linear.prefix


def _built_by_vllm(
    asked: Mapping[str, tuple[Path, Deployment]],
    drafted: Mapping[str, int],
    refused: Mapping[str, str],
) -> dict[str, Any]:
    cases = [
        {
            "name": name,
            "directory": str(directory),
            "tp": deployment.layout.tp,
            "dp": deployment.layout.dp,
            "ep": deployment.ep,
            "drafted": drafted[name],
            "refused": refused[name],
        }
        for name, (directory, deployment) in asked.items()
    ]
    return answers_of(Path(__file__).with_name("vllm_inventory.py"), cases, timeout_s=500)
