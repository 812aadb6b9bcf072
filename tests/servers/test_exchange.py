"""Servers whose o_proj is whole behind a token exchange: sharded as the replicated control says.

The control exchanges tokens, too, and moves no weight. Plain tensor parallelism adds partial sums
in bf16, so it is equal to rounding only.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recital import model_path
from serving import probe
from serving.answers import Answer, ask, check_identical, compare
from serving.biased import biased_llama
from serving.layout import Layout
from serving.metrics import CACHED, cached_tokens, repeated_tokens
from serving.questions import questions
from serving.reports import check_reports, reports
from serving.server import Server
from serving.weights import with_draft_layer, with_other_weights

pytestmark = pytest.mark.serve

TOKENS = pytest.mark.matrix(part="tokens")

TP2 = Layout(tp=2)
LAYERS = ["o_proj"]
CHANGED = ("self_attn.o_proj",)


def asking(**options: Any) -> dict[str, Any]:
    return {"layers": LAYERS, "token_exchange": LAYERS, "verify": True, **options}


def control(**options: Any) -> dict[str, Any]:
    return {"layers": LAYERS, "token_exchange": LAYERS, "placement": "replicated", **options}


def poison(server: Server) -> None:
    """Fill slots, and from now on the rows that an exchange adds, with NaN."""
    poisoned = server.post("/collective_rpc", {"method": "poison_slots"})
    assert set(poisoned["results"]) == {"1"}, "each of the ranks has one series"
    server.post("/collective_rpc", {"method": "poison_padding"})


class Sharded(Server):
    """Everything that may be poisoned is, before the first question; reports are the plan's."""

    def __init__(self, model: Path, directory: Path, sharding: dict[str, Any], **options: Any):
        self._directory = directory / "reports"
        self._layout = options.setdefault("layout", TP2)
        self._sharding = sharding
        options["arguments"] = (*options.get("arguments", ()), *probe.ARGUMENTS)
        super().__init__(
            model,
            directory / "sharded",
            sharding=sharding | {"report_dir": str(self._directory)},
            environment=probe.ENVIRONMENT,
            **options,
        )

    def __enter__(self) -> Sharded:
        super().__enter__()
        poison(self)
        return self

    def check(self) -> None:
        check_reports(
            self._directory,
            self.model,
            LAYERS,
            layout=self._layout,
            placement=self._sharding.get("placement", "round_robin"),
            token_exchange=LAYERS,
        )
        counted: dict[tuple[int, ...], set[tuple[int, int]]] = {}
        for report in reports(self._directory, self._layout):
            (series,) = report["series"]
            engine = tuple(rank // self._layout.tp for rank in series["group_ranks"])
            count = series["forwards"], series["exchanges"]
            counted.setdefault(engine, set()).add(count)
        assert all(len(counts) == 1 for counts in counted.values()), "ranks that run together"


def both_say(
    model: Path,
    prompts: list[list[int]],
    directory: Path,
    sharding: dict[str, Any] | None = None,
    *,
    cached: bool = False,
    **options: Any,
) -> list[Answer]:
    """What a sharded server says, twice over, and its control to the bit.

    First its last engine alone is asked: any others are idle. With `cached` vLLM has to find all
    that may be cached the second time.
    """

    def asked(server: Server) -> list[list[Answer]]:
        last = ask(server, prompts[:8], rank=server.engines - 1)
        first = ask(server, prompts)
        before = cached_tokens(server) if cached else []
        again = ask(server, prompts)
        if cached:
            hits = [now - then for now, then in zip(cached_tokens(server), before, strict=True)]
            assert hits == repeated_tokens(server, prompts)
        return [first, again, last]

    with Sharded(model, directory, sharding or asking(), **options) as server:
        sharded = asked(server)
        server.check()
    options.setdefault("layout", TP2)
    with Server(model, directory / "control", sharding=control(), **options) as server:
        replicated = asked(server)
    for one, other in zip(sharded, replicated, strict=True):
        check_identical(one, other)
    return sharded[0]


@pytest.mark.timeout(900)
def test_sharded_behind_an_exchange_says_what_the_control_says(model, prompts, reference, tmp_path):
    said = both_say(model, prompts, tmp_path)
    assert [answer.token_ids for answer in said] == reference


@pytest.fixture(scope="module")
def dense() -> Path:
    return model_path("dense")


@TOKENS
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["experts", "dense"])
def test_as_near_to_plain_tensor_parallelism_as_that_is_to_one_rank(kind, tmp_path):
    """The same tokens; logprobs are at most twice as far, for the same prompts in the same run."""
    trained = model_path(kind)
    asked = questions(trained)
    plain = {}
    for ranks in (1, 2):
        log = tmp_path / f"plain-{ranks}"
        with Server(trained, log, layout=Layout(tp=ranks)) as server:
            plain[ranks] = ask(server, asked)
    with Sharded(trained, tmp_path, asking()) as server:
        exchanged = ask(server, asked)
        server.check()
    usual, ours = compare(plain[2], plain[1]), compare(exchanged, plain[2])
    print(f"plain on two ranks against one: {usual}\nexchanged against plain on two: {ours}")
    assert ours.same_tokens == ours.of > 0
    assert ours.largest_logprob_gap <= 2 * usual.largest_logprob_gap


@TOKENS
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [{"placement": "striped"}, {"transport": "pull"}], ids=str)
def test_stripes_and_pulls_of_a_dense_model(options, dense, tmp_path):
    both_say(dense, questions(dense), tmp_path, asking(**options))


@TOKENS
@pytest.mark.timeout(900)
def test_a_bias_is_added_once_to_each_row(tmp_path):
    """8220: it was missing on the ranks above 0. Llama with `attention_bias`, untrained."""
    biased = biased_llama(model_path("dense"), tmp_path / "biased")
    both_say(biased, questions(biased), tmp_path)


@TOKENS
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["experts", "dense"])
def test_two_engines_of_two_ranks(kind, tmp_path):
    """In lockstep four ranks share; of a dense model the two of each engine do.

    A draft layer is in the checkpoint, and unused (5578). One engine is idle at times (9689).
    """
    trained = model_path(kind)
    if kind == "experts":
        trained = with_draft_layer(trained, tmp_path / "drafting")
    both_say(trained, questions(trained), tmp_path, layout=Layout(dp=2, tp=2))


@TOKENS
@pytest.mark.timeout(1200)
def test_compiled_tensor_parallelism(model, prompts, reference, tmp_path):
    said = both_say(model, prompts, tmp_path, eager=False)
    assert [answer.token_ids for answer in said] == reference


@TOKENS
@pytest.mark.timeout(1800)
def test_compiled_pipeline_stages(model, prompts, reference, tmp_path):
    """9622: five layers on the first stage and four on the second, which starts at no multiple."""
    said = both_say(model, prompts, tmp_path, layout=Layout(tp=2, pp=2), eager=False)
    assert [answer.token_ids for answer in said] == reference


@TOKENS
@pytest.mark.timeout(900)
def test_prefix_caching_and_chunked_prefill(dense, prompts, tmp_path):
    """Of a model without MLA, for which vLLM has both on any CPU."""
    arguments = (*CACHED, "--enable-chunked-prefill", "--max-num-batched-tokens", "32")
    both_say(dense, prompts, tmp_path, arguments=arguments, cached=True)


@TOKENS
@pytest.mark.timeout(900)
def test_drafting_with_an_mtp_layer(model, prompts, reference, tmp_path):
    """7809, 11433: a drafter's steps have other token counts, and its o_proj is not exchanged."""
    drafting = with_draft_layer(model, tmp_path / "drafting")
    arguments = ("--speculative-config", '{"method": "mtp", "num_speculative_tokens": 1}')
    said = both_say(drafting, prompts, tmp_path, arguments=arguments)
    assert [answer.token_ids for answer in said] == reference


@TOKENS
@pytest.mark.timeout(900)
def test_a_reload_is_of_whole_linears(model, prompts, tmp_path):
    other = with_other_weights(model, tmp_path / "other", CHANGED)
    with Sharded(model, tmp_path, asking()) as server:
        said = [ask(server, prompts)]
        for checkpoint in (other, model):
            body = {"method": "reload_some", "args": [str(checkpoint), CHANGED], "timeout": 100}
            assert server.post("/collective_rpc", body)["results"] == ["9", "9"]
            said.append(ask(server, prompts))
        server.check()
    before, after, again = said
    with Server(other, tmp_path / "started", sharding=control(), layout=TP2) as server:
        check_identical(after, ask(server, prompts))
    assert before == again
    assert sum(a.token_ids != b.token_ids for a, b in zip(before, after, strict=True)) >= 4
