"""The two tables: the modules whose functions are parts, and how their names begin."""

from __future__ import annotations

MODULES = {
    "tests": (
        (
            "tests.gpu.test_torch_alone",
            "tests.gpu.test_streams",
            "tests.gpu.test_graph_modes",
            "tests.gpu.test_nccl",
            "tests.gpu.test_tokens",
            "tests.gpu.test_pull",
            "tests.gpu.test_exports",
        ),
        "test_",
    ),
    "bench": (
        (
            "benchmarks.on_gpu.copies",
            "benchmarks.on_gpu.forwards",
            "benchmarks.on_gpu.contention",
            "benchmarks.on_gpu.grouped",
        ),
        "bench_",
    ),
}
