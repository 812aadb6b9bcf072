"""Quantised checkpoints, served: equal to the unsharded server of the same checkpoint to the bit.

Two of vLLM's own methods with their CPU kernels, and one that vLLM does not know: a plugin of the
tests registers it in every process of the server.
"""

from __future__ import annotations

import os

import pytest

from serving.answers import ask, check_identical
from serving.layout import TWO_RANKS
from serving.quantised import LINEARS, PLUGINS, kernel_lacking, quantised
from serving.reports import check_reports, reports
from serving.server import Server

pytestmark = [pytest.mark.serve, pytest.mark.matrix(part="modes"), pytest.mark.timeout(900)]

LAYERS = list(LINEARS)
PLANNED = ("awq", "fp8")
SIZES = {"q_b_proj": (384, 64), "o_proj": (128, 128)}


@pytest.mark.parametrize("method", ["awq", "fp8", "reference-groups"])
def test_sharded_as_unsharded(method, model, prompts, reference, tmp_path):
    if reason := kernel_lacking(method):
        # vLLM itself cannot serve the model, sharded or not: its CPU kernel wants AVX-512.
        pytest.skip(reason)
    checkpoint = quantised(model, tmp_path / "model", method)
    path = f"{PLUGINS}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    sharding = {"layers": LAYERS, "verify": True, "report_dir": str(tmp_path / "reports")}
    answers = {}
    for case, asked in (("plain", None), ("sharded", sharding)):
        with Server(
            checkpoint, tmp_path / case, sharding=asked, environment={"PYTHONPATH": path}
        ) as server:
            answers[case] = ask(server, prompts)
            if asked is None:
                continue
            if method in PLANNED:
                check_reports(tmp_path / "reports", checkpoint, LAYERS)
            else:
                check_unplanned(reports(tmp_path / "reports", TWO_RANKS))
    said = [answer.token_ids for answer in answers["plain"]]
    same = sum(one == other for one, other in zip(said, reference, strict=True))
    assert same >= len(prompts) // 2, "the checkpoint is quantised wrongly: it no longer recites"
    check_identical(answers["sharded"], answers["plain"])


def check_unplanned(found) -> None:
    """The planner does not know the tests' own method: its bytes, by hand."""
    for rank, report in enumerate(found):
        assert {series["name"] for series in report["series"]} == set(SIZES)
        for series in report["series"]:
            rows, columns = SIZES[series["name"]]
            # Two columns in a byte; for each 16 of a row, scale and offset in float32.
            layer_bytes = rows * columns // 2 + 2 * 4 * rows * columns // 16
            owned = [layer for layer in range(9) if layer % 2 == rank]
            assert series["owned_layers"] == owned
            assert series["replicated_bytes"] == 9 * layer_bytes
            assert series["resident_bytes"] == len(owned) * layer_bytes
            assert series["slot_bytes"] == 2 * layer_bytes
            assert series["launches"] == series["waits"] == 9 * series["forwards"] > 0
