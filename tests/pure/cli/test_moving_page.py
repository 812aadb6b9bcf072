"""The page of `plan --html` where forwards may move activations: what the JSON has, it shows."""

from __future__ import annotations

from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from console import document, said
from layershard_cli.render.units import size

PLAN = ["plan", "--model", "DeepSeek-V3", "--dp", "8", "--ep", "--layers", "o_proj"]
HEADING = "Activations that move to a weight, in the place of the weight"


class _Tables(HTMLParser):
    """The cells of every table, row by row, in one list."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tr":
            self.rows.append([])
        self._inside = tag in ("td", "th")
        if self._inside:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = self._inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] += data


def _page(tmp_path: Path, *flags: str) -> str:
    path = tmp_path / "plan.html"
    said(*PLAN, *flags, "--html", str(path))
    return path.read_text()


@pytest.mark.parametrize(
    ("flags", "planned"),
    [
        (
            ["--hardware", "RTX-PRO-6000", "--move", "auto"],
            "a forward moves weights from {move_weights_from:,} tokens a rank on",
        ),
        (
            ["--hardware", "H200", "--move", "auto", "--placement", "striped"],
            "a forward moves weights from {move_weights_from:,} tokens a rank on",
        ),
        (["--hardware", "H200", "--move", "activations"], "activations move in every forward"),
    ],
)
def test_the_page_has_both_ways_of_each_phase(
    flags: list[str], planned: str, tmp_path: Path
) -> None:
    text = _page(tmp_path, *flags)
    move = document(*PLAN, *flags, "--json")["move"]
    assert f"<h2>{HEADING}</h2>" in text
    assert move["verdict"] in unescape(text)
    assert planned.format_map(move) in text
    assert f"gathers at most {size(move['gathered_bytes'])} beside" in text
    tables = _Tables()
    tables.feed(text)
    cells = {row[0]: row[1:] for row in reversed(tables.rows)}  # the first of a name
    (linear,) = move["linears"]
    assert cells["o_proj"][-3:] == [
        f"{linear[f'{way}_tokens']:,}" for way in ("owner", "output", "input")
    ]
    assert cells["one forward"] == ["prefill", "decode"]
    for name, key in (
        ("tokens a rank", "tokens"),
        ("tokens of that product", "product_tokens"),
        ("collectives of activations", "collectives"),
    ):
        assert cells[name] == [f"{phase[key]:,}" for phase in move["phases"]]
    assert cells["moves in this plan"] == [phase["moves"] for phase in move["phases"]]
    for name, key in (
        ("bytes of a layer's activations, there and back", "activation_bytes"),
        ("bytes of its weight, where that moves", "weight_bytes"),
    ):
        assert cells[name] == [size(phase[key]) for phase in move["phases"]]
    for name, key in (
        ("the two of a layer take at least", "latency_us"),
        ("a layer's activations there", "there_us"),
        ("its product of all ranks' tokens", "product_us"),
        ("in the place of the product of its own", "own_us"),
        ("its results back", "back_us"),
        ("the forward without sharding", "compute_us"),
    ):
        assert cells[name] == [f"{phase[key]:,.1f} us" for phase in move["phases"]]
    for way in ("activations", "weights"):
        assert cells[f"it is longer where {way} move"] == [
            f"{phase[f'{way}_us']:,.1f} us, {phase[f'{way}_us'] / phase['compute_us']:+.1%}"
            for phase in move["phases"]
        ]
    assert cells["reading of the weight that is spared"] == [
        f"{size(phase['spared_bytes'])}, {phase['spared_us']:,.1f} us"
        if phase["spared_bytes"]
        else "none"
        for phase in move["phases"]
    ]


def test_the_page_has_both_stages_where_each_way_slows_another_most(tmp_path: Path) -> None:
    command = ["plan", "--model", "DeepSeek-V3", "--dp", "2", "--pp", "3", "--ep", "--batch", "2"]
    command += ["--layers", "o_proj", "--hardware", "H200", "--move", "auto"]
    path = tmp_path / "plan.html"
    said(*command, "--html", str(path))
    tables = _Tables()
    tables.feed(path.read_text())
    cells = {row[0]: row[1:] for row in tables.rows}
    phases = document(*command, "--json")["move"]["phases"]
    assert phases[1]["activations_compute_us"] > phases[1]["compute_us"]
    for way, key in (("activations", "activations_compute_us"), ("weights", "compute_us")):
        alone = f"the forward without sharding, of the stage that loses most by {way}"
        assert cells[alone] == [f"{phase[key]:,.1f} us" for phase in phases]
        shares = [phase[f"{way}_us"] / phase[key] for phase in phases]
        longer = cells[f"it is longer where {way} move"]
        assert [cell.rpartition(" ")[2] for cell in longer] == [f"{one:+.1%}" for one in shares]
        assert all(f"{one:+.1%}" in said(*command) for one in shares)


def test_a_phase_moves_what_the_rule_says_of_its_tokens() -> None:
    """Of a decode of 64 tokens a rank."""
    for tokens, moved in ((64, "weights"), (65, "activations")):
        flags = ["--move", "auto", "--move-weights-from", str(tokens), "--json"]
        prefill, decode = document(*PLAN, *flags)["move"]["phases"]
        assert (prefill["moves"], decode["moves"]) == ("weights", moved)


def test_a_device_that_lacks_numbers_has_bytes_and_no_times(tmp_path: Path) -> None:
    flags = ["--hardware", "MI300X", "--dp", "32", "--move", "activations"]
    text = _page(tmp_path, *flags)
    move = document(*PLAN, *flags, "--json")["move"]
    assert move["lacking"]
    assert move["phases"] == []
    assert move["verdict"] in unescape(text)
    assert f"gathers at most {size(move['gathered_bytes'])} beside" in text
    assert "one forward</th>" not in text


def test_where_weights_alone_move_the_page_has_no_such_section(tmp_path: Path) -> None:
    assert HEADING not in _page(tmp_path)
    assert HEADING not in _page(tmp_path, "--move", "activations", "--placement", "replicated")
