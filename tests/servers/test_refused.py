"""What only the model can tell ends the server with one message, and nothing hangs.

That it is refused on every rank is held by tests/vllm/loading/test_model.py.
"""

from __future__ import annotations

import pytest

from serving.server import Server, ServerError

pytestmark = [pytest.mark.serve, pytest.mark.matrix(part="ends")]


def refused(model, log, sharding) -> str:
    with (
        pytest.raises(ServerError) as error,
        Server(model, log, sharding=sharding, api_servers=None),
    ):
        pass
    assert error.value.returncode not in (0, None)
    return error.value.log


def test_a_name_that_matches_nothing_lists_the_models_linears(model, tmp_path):
    log = refused(model, tmp_path / "log", ["o_proj", "out_proj"])
    assert "'out_proj' matches no linear of this model; those that may be sharded are: " in log
    assert "self_attn.o_proj (9 x 32,768 bytes)" in log
    assert "mlp.gate_up_proj (4 x 131,072 bytes)" in log


def test_a_step_too_large_for_a_series_names_it(model, tmp_path):
    sharding = {"layers": ["mlp.gate_up_proj"], "prefetch_step": 4}
    log = refused(model, tmp_path / "log", sharding)
    assert "series 'mlp.gate_up_proj' has 4 layers; prefetch_step 4 needs at least 5" in log
