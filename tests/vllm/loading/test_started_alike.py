"""Two real engines of which one was started otherwise: both say so, before anything is loaded."""

from __future__ import annotations

import shutil
from functools import partial

from hosted.engines import load, run_engines
from recital import model_path
from serving.weights import with_other_weights
from vllm_layershard.errors import LayerShardError

SHORT_S = 3.0
"""For a rank that does not come. For those that come it is as long as it is for users."""


def strangers(reports: str, copy: str, tuned: str, rank: int, config) -> list[str]:
    """What each start comes to on this rank, which alone is changed if it is rank 1."""
    from vllm_layershard.runtime.ranks import handshake
    from vllm_layershard.runtime.report_file import ReportFile

    text, settings = config.model_config.hf_text_config, config.additional_config
    said = []

    def start() -> None:
        config.compilation_config.static_forward_context.clear()
        try:
            load(config, lambda model: None)
            said.append("loaded")
        except LayerShardError as error:
            said.append(f"{type(error).__name__}: {error}")

    def other(value) -> None:
        config.additional_config = {"layer_sharding": value} if rank else settings

    other({"layers": ["o_proj", "q_b_proj"], "report_dir": "elsewhere"})
    start()
    other({"layers": ["o_proj"], "prefetch_step": 1, "verify": True})
    start()
    config.additional_config = settings
    text.num_hidden_layers -= rank
    start()
    text.num_hidden_layers += rank
    from vllm_layershard.hosts import model

    version = model.__version__
    model.__version__ = f"{version}.post{rank}"
    start()
    model.__version__ = version
    model.check_matched, check_matched = fails_on(rank, model.check_matched), model.check_matched
    start()
    model.check_matched = check_matched
    config.additional_config = {"layer_sharding": {"layers": ["o_proj"], "report_dir": reports}}
    another_servers = ReportFile(reports, 1)
    if rank == 0:
        another_servers.write("{}")
    start()
    config.additional_config = settings
    if rank:
        config.model_config.model = tuned
    start()
    if rank:
        config.model_config.model = copy
    start()
    handshake.PATIENCE_S = SHORT_S
    config.additional_config = {} if rank else settings
    start()
    return said


def fails_on(rank: int, check):
    """Only this rank cannot shard its model."""

    def checking(*arguments) -> None:
        if rank:
            raise LayerShardError("only here")
        check(*arguments)

    return checking


def test_both_ranks_end_with_one_error_that_names_what_differs(tmp_path):
    copy = shutil.copytree(model_path(), tmp_path / "copy", copy_function=shutil.copyfile)
    other = with_other_weights(model_path(), tmp_path / "other", ("q_b_proj",))
    inspect = partial(strangers, str(tmp_path / "reports"), str(copy), str(other))
    zero, one = run_engines(model_path(), {"layers": ["o_proj"]}, inspect)
    assert not isinstance(zero, str), zero
    assert not isinstance(one, str), one
    against = "rank 1 against rank 0: configuration."
    parts = [
        f"{against}layer_sharding.layers: ['o_proj'] != ['o_proj', 'q_b_proj']",
        f"{against}layer_sharding.verify: False != True",
        f"{against}num_layers: 9 != 8",
        f"{against}vllm-layershard: ",
    ]
    for part, said, also in zip(parts, zero, one, strict=False):
        assert said == also
        assert said.startswith("MismatchError: the ranks of layer sharding were not started alike")
        assert part in said
        assert "report_dir" not in said
    assert zero[4] == "MismatchError: rank 1 ended: LayerShardError: only here"
    assert one[4] == "LayerShardError: only here"
    assert one[5].startswith(
        f"ConfigError: layer_sharding.report_dir = '{tmp_path / 'reports'}': the report of"
    )
    assert zero[5] == f"MismatchError: rank 1 ended: {one[5]}"
    different = f"model.safetensors has other values on rank 1 than on rank 0 ({other}; "
    assert zero[6] == one[6]
    assert zero[6].startswith("MismatchError: the ranks of layer sharding were given different ch")
    assert f"rank 1 against rank 0: {different}" in zero[6]
    assert zero[7] == one[7] == "loaded", "a copy elsewhere, with other times"
    assert "MismatchError: rank 1 of the world's 2 did not come to compare the conf" in zero[8]
    assert f"within {SHORT_S:g} s: it runs without the key layer_sharding" in zero[8]
    assert one[8] == "loaded"
