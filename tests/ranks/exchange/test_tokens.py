"""A token exchange on real ranks: equal to the whole product, chunk with chunk, to the bit."""

from __future__ import annotations

import math

import pytest
import torch

from gloo.exchanging import COLUMNS, PREFIX, WIDTH, Whole, columns_of, rows_of
from gloo.ranks import RankError, run_ranks
from vllm_layershard.runtime.exchange import tokens
from vllm_layershard.runtime.exchange.tokens import share_of

COUNTS = range(1, 65)


@torch.inference_mode()
def every_count(rank: int, bias: bool) -> dict:
    whole = Whole(bias=bias, dtype=torch.bfloat16)
    exact = whole.linear.weight.double(), whole.linear.bias.double() if bias else None
    equal, error, split_error, shares, alone = [], [], [], [], []
    for count in COUNTS:
        rows = rows_of(count, torch.bfloat16)
        x = columns_of(rows)
        before, given = whole.counters.exchanged_rows, x.clone()
        found = whole(x)
        shares.append(whole.counters.exchanged_rows - before)
        equal.append(torch.equal(found, whole.chunk_by_chunk(rows)))
        alone.append(torch.equal(x, given) and found.data_ptr() != x.data_ptr())
        truth = torch.nn.functional.linear(rows.double(), *exact)
        error.append((found.double() - truth).square().flatten())
        split_error.append((whole.split_by_rows(x).double() - truth).square().flatten())
    return {
        "equal": equal,
        "input left alone": alone,
        "shares": shares,
        "exchanges": whole.counters.exchanges,
        "error": torch.cat(error).mean().item(),
        "split error": torch.cat(split_error).mean().item(),
    }


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [2, 4])
def test_every_number_of_tokens_equals_the_whole_product_chunk_with_chunk(size, bias, tmp_path):
    """And is nearer to it than partial sums in bf16 are. 7809, 7810: any N; 8220: a bias."""
    for seen in run_ranks(size, every_count, tmp_path, bias):
        assert seen["equal"] == [True] * len(COUNTS)
        assert seen["input left alone"] == [True] * len(COUNTS)
        assert seen["shares"] == [math.ceil(count / size) for count in COUNTS]
        assert seen["exchanges"] == len(COUNTS)
        assert 0 < seen["error"] < seen["split error"]


@torch.inference_mode()
def odd_inputs(rank: int) -> dict:
    whole = Whole(bias=True, dtype=torch.bfloat16)
    rows = rows_of(6, torch.bfloat16)
    wide = torch.full((6, COLUMNS), float("nan"), dtype=torch.bfloat16)
    half = COLUMNS // 2
    wide[:, 1 : half + 1] = columns_of(rows)
    strided = wide[:, 1 : half + 1]
    assert not strided.is_contiguous()
    swapped = columns_of(rows).t().contiguous().t()
    right = whole.chunk_by_chunk(rows)
    return {
        "strided": torch.equal(whole(strided), right),
        "swapped": torch.equal(whole(swapped), right),
        "none": list(whole(columns_of(rows)[:0]).shape),
    }


def test_inputs_that_lie_in_memory_otherwise_and_none_at_all(tmp_path):
    for seen in run_ranks(2, odd_inputs, tmp_path):
        assert seen == {"strided": True, "swapped": True, "none": [0, WIDTH]}


@torch.inference_mode()
def with_bad_padding(rank: int) -> list[bool]:
    """Padding that is NaN instead of zeros, and a row of the batch that is."""
    whole = Whole(bias=True, dtype=torch.bfloat16)
    fill = tokens.padded

    def bad(x: torch.Tensor, rows: int) -> torch.Tensor:
        filled = fill(x, rows).clone()
        filled[len(x) :] = float("nan")
        return filled

    right = []
    for count in (1, 3, 5, 7, 13):
        rows = rows_of(count, torch.bfloat16)
        expected = whole.chunk_by_chunk(rows)
        tokens.padded = bad
        right.append(torch.equal(whole(columns_of(rows)), expected))
        tokens.padded = fill
        rows[-1] = float("nan")
        found = whole(columns_of(rows))
        right.append(torch.equal(found[:-1], expected[:-1]) and bool(found[-1].isnan().all()))
    return right


@pytest.mark.parametrize("size", [2, 4])
def test_no_row_of_the_padding_reaches_a_result(size, tmp_path):
    for seen in run_ranks(size, with_bad_padding, tmp_path):
        assert seen == [True] * 10


def test_rows_that_are_added_are_zeros():
    """A quantiser with one scale for a whole tensor looks at them, too."""
    given = torch.full((5, 3), 7.0)
    filled = tokens.padded(given, 8)
    assert torch.equal(filled[:5], given)
    assert torch.equal(filled[5:], torch.zeros(3, 3))


def other_columns(rank: int, columns: int) -> None:
    whole = Whole(bias=False, dtype=torch.bfloat16)
    whole(torch.zeros(4, columns, dtype=torch.bfloat16))


@pytest.mark.parametrize("columns", [COLUMNS, COLUMNS // 4])
def test_columns_that_are_not_the_whole_linears_are_refused_by_both_sizes(columns, tmp_path):
    """12683: all heads on every rank, where a rank's own were expected, and the reverse."""
    with pytest.raises(RankError) as raised:
        run_ranks(2, other_columns, tmp_path, columns)
    assert raised.value.kind == "HostError"
    assert raised.value.text == (
        f"{PREFIX}: each of 2 tensor-parallel ranks brings {columns} columns, but the whole linear "
        f"takes {COLUMNS}: its input is not split evenly over them; leave it out of token_exchange"
    )


@torch.inference_mode()
def compiled(rank: int) -> dict:
    whole = Whole(bias=True, dtype=torch.bfloat16)
    other = Whole(bias=False, dtype=torch.bfloat16, prefix="model.layers.1.o_proj")
    graphs = 0

    def forward(x: torch.Tensor) -> torch.Tensor:
        residual = whole(torch.tanh(x))
        return torch.relu(residual) + other(x) + residual

    def counted(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):
        nonlocal graphs
        graphs += 1
        return torch._inductor.compile(graph, inputs)

    torch._inductor.config.compile_threads = 1  # a pool of processes takes longer to start
    run = torch.compile(forward, fullgraph=True, dynamic=True, backend=counted)
    close = []
    for count in (40, *range(2, 24), 31, 63, 1):  # as many as columns would be one size
        x = columns_of(rows_of(count, torch.bfloat16))
        close.append(torch.allclose(run(x).float(), forward(x).float(), rtol=0.02, atol=0.02))
    return {"close": close, "graphs": graphs, "exchanges": whole.counters.exchanges}


@pytest.mark.parametrize("size", [2])
def test_compiled_once_for_any_number_of_tokens(size, tmp_path):
    """One token, and one row for each rank, may have graphs of their own."""
    for seen in run_ranks(size, compiled, tmp_path):
        assert seen["close"] == [True] * len(seen["close"])
        assert 1 <= seen["graphs"] <= 3
        assert seen["exchanges"] == 2 * len(seen["close"])


def test_the_ops_pass_torchs_own_checks(tmp_path):
    for seen in run_ranks(2, checked, tmp_path):
        assert all(result == "SUCCESS" for result in seen.values()), seen


def checked(rank: int) -> dict[str, str]:
    """Schema (nothing is changed, nothing aliased) and shapes, for odd and even rows."""
    whole = Whole(bias=False, dtype=torch.bfloat16)
    tests = ("test_schema", "test_faketensor")
    found = {}
    for count in (4, 5):
        x = torch.randn(count, COLUMNS // 2)
        rows = torch.randn(share_of(count, 2), WIDTH)
        for op, arguments in (
            (torch.ops.layershard.exchange.default, (x, 2, whole.prefix)),
            (torch.ops.layershard.gather.default, (rows, count, whole.prefix)),
        ):
            results = torch.library.opcheck(op, arguments, test_utils=tests)
            found |= {f"{op} {count} {test}": result for test, result in results.items()}
    return found
