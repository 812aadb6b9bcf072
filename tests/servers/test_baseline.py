"""The baseline: one rank of vLLM alone, with no plugin loaded, says what transformers says.

Everything else compares servers with servers; this compares one with another implementation, with
neither sharding nor data parallelism (nor their patches) in between.
"""

from __future__ import annotations

import pytest

from serving.answers import ask
from serving.cache import check_cache
from serving.layout import Layout
from serving.server import Server

pytestmark = pytest.mark.serve

NO_PLUGINS = {"VLLM_PLUGINS": ""}


def test_one_rank_says_what_transformers_says(model, prompts, reference, tmp_path):
    with Server(model, tmp_path / "log", layout=Layout(), environment=NO_PLUGINS) as server:
        answers = ask(server, prompts)
        check_cache(server.log_text(), model, Layout())
    assert [answer.token_ids for answer in answers] == reference
