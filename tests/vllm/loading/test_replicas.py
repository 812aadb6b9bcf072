"""Two engines of a dense model, which never wait for each other, load it with the real vLLM."""

from __future__ import annotations

import functools
import json
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hosted.engines import load, run_engines
from recital import model_path
from serving.weights import with_other_weights
from vllm_layershard.errors import LayerShardError, NodeError
from vllm_layershard.runtime.reload import act

LAYERS = range(7)
HANG_S = 120
NAMES = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
STORED = {
    "self_attn.qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "self_attn.o_proj": ("o_proj",),
    "mlp.gate_up_proj": ("gate_proj", "up_proj"),
    "mlp.down_proj": ("down_proj",),
}
"""The checkpoint's names of what vLLM fuses."""


@pytest.fixture(scope="module")
def dense() -> Path:
    return model_path("dense")


def stored(directory: str) -> dict[tuple[str, int], torch.Tensor]:
    """Each linear's weight as vLLM holds it, from a checkpoint; by series name and layer."""
    tensors = load_file(f"{directory}/model.safetensors")
    return {
        (path.split(".")[1], layer): torch.cat(
            [tensors[f"model.layers.{layer}.{path.split('.')[0]}.{name}.weight"] for name in names]
        )
        for path, names in STORED.items()
        for layer in LAYERS
    }


def one_forward() -> dict[tuple[str, int], torch.Tensor]:
    """What each linear would read in a forward, in the order of the model's."""
    from vllm_layershard.runtime.ops import bound_series

    read = {}
    for layer in LAYERS:
        for series in bound_series():
            series.reach(layer)
        for series in bound_series():
            series.wait(layer)
            read[series.name, layer] = series.weights(layer)["weight"].clone()
    return read


def wrong(read: dict, expected: dict) -> list[tuple[str, int]]:
    return [key for key, weight in expected.items() if not torch.equal(read[key], weight)]


def life(rank: int, config: Any) -> dict[str, Any]:
    from vllm_layershard.runtime.ops import bound_series

    on_meta: list[int] = []

    def between(model: torch.nn.Module) -> None:
        on_meta.extend(
            layer
            for layer in LAYERS
            if model.get_submodule(f"model.layers.{layer}.self_attn.qkv_proj").weight.is_meta
        )

    time.sleep(2 * rank)  # one is late
    _kept = load(config, between)
    poison = [series.slots.poison for series in bound_series()]
    checkpoint = stored(config.model_config.model)
    forwards = []
    for _ in range(2 + rank):
        for each in poison:
            each()
        forwards.append(wrong(one_forward(), checkpoint))
    return {
        "ranks": {series.group.ranks for series in bound_series()},
        "group rank": {series.group.group_rank for series in bound_series()},
        "lockstep": {series.group.lockstep for series in bound_series()},
        "names": [series.name for series in bound_series()],
        "on meta": on_meta,
        "owned": list(bound_series()[0].plan.owned_layers(rank)),
        "wrong": forwards,
        "held": [series.resident_bytes() for series in bound_series()],
        "planned": [series.plan.ledger.resident_bytes[rank] for series in bound_series()],
    }


@pytest.mark.parametrize(
    "placement", ["round_robin", pytest.param("striped", marks=pytest.mark.matrix(part="replicas"))]
)
def test_replicas_read_each_others_layers_and_hold_only_their_own(dense, placement, tmp_path):
    sharding = {
        "layers": NAMES,
        "placement": placement,
        "verify": True,
        "report_dir": str(tmp_path),
    }
    for rank, seen in enumerate(run_engines(dense, sharding, life)):
        assert not isinstance(seen, str), seen
        assert seen["ranks"] == {(0, 1)}
        assert seen["group rank"] == {rank}
        assert seen["lockstep"] == {False}
        assert seen["names"] == NAMES
        owned = [layer for layer in LAYERS if layer % 2 == rank]
        whole = placement == "round_robin"
        assert seen["owned"] == (owned if whole else [])
        assert seen["on meta"] == [i for i in LAYERS if i not in seen["owned"]]
        assert seen["wrong"] == [[]] * (2 + rank)
        assert seen["held"] == seen["planned"]
    assert {json.loads(file.read_text())["rank"] for file in tmp_path.iterdir()} == {0, 1}


def wait_for(file: Path) -> None:
    """Return once another rank has made this file."""
    deadline = time.monotonic() + HANG_S
    while not file.exists():
        assert time.monotonic() < deadline, f"nobody makes {file.name}"
        time.sleep(0.02)


class Runner(SimpleNamespace):
    """As much of vLLM's model runner as its reload asks for."""

    def get_model(self) -> torch.nn.Module:
        return self.model

    def reset(self) -> None:
        return None

    reset_lora_state = reset_encoder_cache = reset_mm_cache = reset


class Engine:
    """One rank with a loaded model, as its worker reloads it and as a forward reads it."""

    def __init__(self, config: Any, *others: str) -> None:
        act.PATIENCE_S = 10.0
        self.runner = Runner(vllm_config=config, model=load(config, lambda model: None))
        self.generations = [stored(config.model_config.model), *map(stored, others)]

    def reload(self, directory: str, tensors: int | None = None) -> str:
        """From the directory itself, or from an iterator that fails after so many tensors."""
        from vllm.v1.worker.gpu_model_runner import GPUModelRunner

        given: dict[str, Any] = {"weights_path": directory}
        if tensors is not None:
            given = {"weights_iterator": some_of(directory, tensors)}
        try:
            with torch.inference_mode(), torch.device("cpu"):
                GPUModelRunner.reload_weights(self.runner, **given)
            return "reloaded"
        except (OSError, LayerShardError) as error:
            return f"{type(error).__name__}: {error}"

    def forward(self) -> str:
        try:
            read = one_forward()
        except LayerShardError as error:
            return f"{type(error).__name__}: {error}"
        whole = [number for number, each in enumerate(self.generations) if not wrong(read, each)]
        return f"generation {whole[0]}" if whole else "a mixture"


def some_of(directory: str, tensors: int) -> Iterator[tuple[str, torch.Tensor]]:
    yield from islice(sorted(load_file(f"{directory}/model.safetensors").items()), tensors)
    raise OSError("truncated")


def addresses() -> list[int]:
    from vllm_layershard.runtime.ops import bound_series

    return [series.weights(i)["weight"].data_ptr() for series in bound_series() for i in LAYERS]


def reloaded(rank: int, config: Any, other: str, cut: str) -> dict[str, Any]:
    """One goes on computing until the other has been asked, and then is asked itself."""
    engine = Engine(config, other)
    asked = Path(other, "asked")
    before, where = [engine.forward()], addresses()
    if rank:
        wait_for(asked)
        before.append(engine.forward())
    asked.touch()
    said = [engine.reload(cut), engine.forward(), engine.reload(other), engine.forward()]
    return {"before": before, "said": said, "same addresses": where == addresses()}


def test_a_reload_is_of_all_replicas_or_of_none(dense, tmp_path):
    """A checkpoint that is cut short changes nothing; a whole one is served by both."""
    other = with_other_weights(dense, tmp_path / "other", ("q_proj", "o_proj", "down_proj"))
    cut = shutil.copytree(other, tmp_path / "cut")
    whole = (cut / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(whole[:-1000])
    inspect = functools.partial(reloaded, other=str(other), cut=str(cut))
    for rank, seen in enumerate(run_engines(dense, {"layers": NAMES}, inspect)):
        assert not isinstance(seen, str), seen
        assert seen["before"] == ["generation 0"] * (1 + rank)
        refused, after, good, last = seen["said"]
        assert refused.startswith(f"ReloadError: rank {rank}: no rank has reloaded its weights")
        assert "model.safetensors: cannot be read as weights, or is cut short" in refused
        assert (after, good, last) == ("generation 0", "reloaded", "generation 1")
        assert seen["same addresses"]


def failed_once(rank: int, config: Any, second: str, third: str, ends: int) -> dict[str, Any]:
    """Both are given the second weights, of which one gets half, then both half; then the third.

    Half ends between the parts of a fused linear. Where both hold the same half, nothing tells.
    """
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    engine = Engine(config, second, third)
    said: dict[str, Any] = {"before": engine.forward()}
    said["second"] = engine.reload(second, ends if rank else 10_000)
    said["between"] = [engine.forward(), engine.forward()]
    said["again"] = engine.reload(second, ends)
    said["third"] = engine.reload(third)
    said["after"] = [engine.forward(), engine.forward()]
    try:
        GPUModelRunner.reload_weights(
            engine.runner, weights_iterator=(), is_checkpoint_format=False
        )
    except LayerShardError as error:
        said["kernel format"] = f"{type(error).__name__}: {error}"
    return said


@pytest.mark.parametrize(
    "placement", ["round_robin", pytest.param("striped", marks=pytest.mark.matrix(part="replicas"))]
)
def test_after_a_reload_that_failed_once_nothing_is_served_until_one_succeeds(
    dense, placement, tmp_path
):
    names = ("q_proj", "o_proj", "down_proj")
    second, third = (with_other_weights(dense, tmp_path / n, names) for n in ("second", "third"))
    turned = {
        name: -tensor if name.endswith(tuple(f"{n}.weight" for n in names)) else tensor
        for name, tensor in load_file(third / "model.safetensors").items()
    }
    save_file(turned, third / "model.safetensors")
    ends = 1 + sorted(turned).index("model.layers.3.self_attn.q_proj.weight")
    inspect = functools.partial(failed_once, second=str(second), third=str(third), ends=ends)
    for rank, said in enumerate(
        run_engines(dense, {"layers": NAMES, "placement": placement}, inspect)
    ):
        assert not isinstance(said, str), said
        assert said["before"] == "generation 0"
        for second in (said["second"], said["again"]):
            assert second.endswith("truncated") or "failed half-way" in second, said
        for forward in said["between"]:
            assert forward.startswith(
                f"TransportError: rank {rank}: a reload of the weights failed half-way"
            ), said
        assert said["third"] == "reloaded"
        assert said["after"] == ["generation 2"] * 2
        assert said["kernel format"].startswith("HostError: layer_sharding: with is_checkpoint_for")


def without_memory(rank: int, config: Any) -> str:
    from vllm_layershard.runtime.peer_memory import PosixExports

    def refuse(*_: Any) -> Any:
        raise NodeError("/dev/shm is full")

    if rank:
        PosixExports.store = refuse
    try:
        load(config, lambda model: None)
    except LayerShardError as error:
        return f"{type(error).__name__}: {error}"
    return "loaded"


def test_a_replica_that_fails_while_it_loads_says_why_to_the_other(dense):
    zero, one = run_engines(dense, {"layers": NAMES}, without_memory)
    assert one == "NodeError: /dev/shm is full"
    assert zero == f"TransportError: rank 1 ended: {one}"


def strangers(rank: int, config: Any, copy: str, other: str) -> list[str]:
    """What each start comes to on this rank, which alone is changed if it is rank 1."""
    from vllm_layershard.runtime.ranks.rendezvous import Rendezvous

    said: list[str] = []
    publish = Rendezvous.publish

    def telling(self: Rendezvous, subject: str, document: Any) -> None:
        publish(self, subject, document)
        if "num_layers" in json.dumps(document):  # it has looked at its files by then
            Path(f"{copy}-looked-at-{len(said)}-by-{rank}").touch()

    Rendezvous.publish = telling

    def start() -> None:
        config.compilation_config.static_forward_context.clear()
        try:
            load(config, lambda model: None)
            said.append("loaded")
        except LayerShardError as error:
            said.append(f"{type(error).__name__}: {error}")

    model, settings = config.model_config, config.additional_config
    if rank:
        config.additional_config = settings | {"layer_sharding": ["o_proj"]}
    start()
    config.additional_config = settings
    directory = model.model
    if rank:  # elsewhere, with times of its own
        model.model = copy
    start()
    model.model = copy
    if rank:  # the same path, but written anew since the other replica has started
        wait_for(Path(f"{copy}-looked-at-{len(said)}-by-0"))
        written = Path(copy, "model.safetensors")
        written.write_bytes(Path(other, "model.safetensors").read_bytes())
    start()
    model.model = directory
    from vllm_layershard.hosts import model as building

    version = building.__version__
    building.__version__ = f"{version}.post{rank}"
    start()
    building.__version__ = version
    dtype, model.dtype = model.dtype, torch.float32 if rank else model.dtype
    start()
    model.dtype = dtype
    start()
    return said


def test_replicas_that_were_not_started_alike_say_so_on_both_sides(dense, tmp_path):
    copy = shutil.copytree(dense, tmp_path / "copy", copy_function=shutil.copyfile)
    other = with_other_weights(dense, tmp_path / "other", ("q_proj",))
    inspect = functools.partial(strangers, copy=str(copy), other=str(other))
    zero, one = run_engines(dense, {"layers": NAMES}, inspect)
    assert not isinstance(zero, str), zero
    assert zero == one
    against = "rank 1 against rank 0: configuration."
    values = "rank 1 against rank 0: model.safetensors has other values on rank 1 than on rank 0"
    differing = [f"{against}layer_sharding.layers", None, values]
    for part, said in zip([*differing, against, f"{against}model.dtype", None], zero, strict=True):
        assert said == "loaded" if part is None else part in said, (part, said)
