"""The table of docs/planning.md that says what an exchange of tokens sends, made by the planner.

PYTHONPATH=tests/support python -m exchange_table

writes it into the page anew.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from vllm_layershard import Layout, load_model, plan_model
from vllm_layershard.planner.results.exchange import Exchange

PAGE: Final = Path(__file__).parents[2] / "docs" / "planning.md"
BEGIN: Final = "<!-- made by tests/support/exchange_table.py: begin -->\n"
END: Final = "<!-- exchange_table: end -->\n"
MODELS: Final = (
    "DeepSeek-V3",
    "Kimi-K2-Instruct",
    "Qwen3-235B-A22B",
    "Meta-Llama-3.1-70B",
    "GLM-4.7",
)
RANKS: Final = (2, 4, 8, 16)


def exchange(name: str, tp: int) -> Exchange:
    """What the planner says of o_proj over so many tensor-parallel ranks."""
    model = load_model(name, offline=True)
    layout = Layout(tp=tp, ep=model.model.is_moe)
    found = plan_model(model, ["o_proj"], layout, token_exchange=["o_proj"]).exchange
    assert found is not None, "it was asked for"
    return found


def held(dp: int) -> Exchange:
    """What the planner says of DeepSeek-V3 over 8 tensor-parallel ranks in each of `dp` engines."""
    model = load_model("DeepSeek-V3", offline=True)
    found = plan_model(model, ["o_proj"], Layout(tp=8, dp=dp), token_exchange=["o_proj"]).exchange
    assert found is not None, "it was asked for"
    return found


def table() -> str:
    """Markdown, with the markers around it."""
    parts = ["".join(_ratios(scattered=False)), _SCATTERED, "".join(_ratios(scattered=True))]
    return "\n".join([BEGIN + parts[0], *parts[1:], _HELD, "".join(_held()) + END])


_SCATTERED: Final = """With sequence parallelism, which is not served yet, the exchange would
take the place of a reduce-scatter, with input / (T output) of its bytes:
"""

_HELD: Final = """What the fullest rank holds of `o_proj` of DeepSeek-V3 in fp8, with two slots:
"""


def _ratios(*, scattered: bool) -> Iterator[str]:
    yield f"| model | input / output |{''.join(f' tp {tp} |' for tp in RANKS)} fewer from |\n"
    yield f"| --- | --- |{' --- |' * len(RANKS)} --- |\n"
    for name in MODELS:
        some, *_ = linears = [exchange(name, tp).linears[0] for tp in RANKS]
        cells = "".join(
            f" {_cell(one.sequence_parallel_ratio if scattered else one.bytes_ratio)} |"
            for one in linears
        )
        wider = some.input_width / some.output_width
        widths = f"{some.input_width:,} / {some.output_width:,} = {wider:.2f}"
        yield f"| {name} | {widths} |{cells} tp {some.least_tp} |\n"


def _held() -> Iterator[str]:
    yield "| layout | ranks that share | plain tp 8 | whole | whole and sharded |\n"
    yield "| --- | --- | --- | --- | --- |\n"
    for dp in (1, 2, 4):
        found = held(dp)
        sizes = (found.plain_bytes, found.replicated_bytes, found.sharded_bytes)
        cells = "".join(f" {nbytes / 2**30:.2f} GiB |" for nbytes in sizes)
        yield f"| tp 8, dp {dp} | {8 * dp} |{cells}\n"


def _cell(ratio: float) -> str:
    return f"**{ratio:.3f}**" if ratio >= 1 else f"{ratio:.3f}"


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(before + table() + rest.partition(END)[2])
