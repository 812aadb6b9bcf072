"""What people see beside the numbers: timeline, page, trace, comparison, list of models."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from console import complaint, layershard, said
from layershard_cli.main import application
from layershard_cli.render.timeline import ASCII, UNICODE, draw
from vllm_layershard.estimate import forecast, profile
from vllm_layershard.estimate.capacity import UTILIZATION
from vllm_layershard.models import Deployment, Sharding, read_model, shard_model
from vllm_layershard.plan import ParallelLayout
from vllm_layershard.schema import validated

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
HEADLESS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update",
    "--disable-background-networking", "--disable-sync", "--disable-quic",
)  # fmt: skip


def sharding(*names: str) -> Sharding:
    deployment = Deployment(ParallelLayout(dp=8), ep=True)
    return shard_model(read_model("DeepSeek-V3"), deployment, validated(list(names)))


@pytest.mark.parametrize("ink", [UNICODE, ASCII])
@pytest.mark.parametrize("width", [20, 80, 200])
def test_the_drawing_keeps_to_its_width(ink, width: int) -> None:
    expected = forecast(sharding("o_proj"), profile("H200"))
    for phase in expected.phases:
        ruler, compute, link = draw(phase.asked.forward.spans, width, ink)
        assert max(map(len, (ruler, compute, link))) <= width
        assert set(compute[9:]) <= {*ink.compute, ink.stall, " "}
        assert set(link[9:]) <= {*ink.link, " "}
        assert set(link[9:]) & set(ink.link), "something moves"


def test_the_drawing_shows_consecutive_layers() -> None:
    expected = forecast(sharding("o_proj"), profile("H200"))
    ruler = draw(expected.phases[1].asked.forward.spans, 120, UNICODE)[0]
    layers = [int(number) for number in ruler.split()[1:]]
    assert layers == list(range(layers[0], layers[0] + 6))


def test_the_trace_is_the_forecast(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    said("plan", "--model", "DeepSeek-V3", "--layers", "o_proj", "--trace", str(path))
    plan = json.loads(said("plan", "--model", "DeepSeek-V3", "--layers", "o_proj", "--json"))
    events = json.loads(path.read_text())["traceEvents"]
    for pid, phase in enumerate(plan["prefetch"]["phases"]):
        here = [event for event in events if event["pid"] == pid and event["ph"] == "X"]
        moved = [event for event in here if event["cat"] == "link"]
        assert len(moved) == 61
        computing = [event for event in here if event["cat"] != "link"]
        end = max(event["ts"] + event["dur"] for event in computing)
        assert end == pytest.approx(phase["compute_us"] + phase["exposed_us"], rel=1e-3)
        starts = [event["ts"] for event in computing]
        assert starts == sorted(starts)


class _Page(HTMLParser):
    """Counts elements, and notes what would be fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: dict[str, int] = {}
        self.references: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] = self.elements.get(tag, 0) + 1
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "plan.html"
    said("plan", "--model", "DeepSeek-V3", "--html", str(path))
    return path


def test_the_page_is_self_contained(page: Path) -> None:
    parser = _Page()
    parser.feed(page.read_text())
    assert parser.references == []
    assert "script" not in parser.elements
    assert "@import" not in page.read_text()
    assert "url(" not in page.read_text()
    assert parser.elements["svg"] == 3


def test_the_page_says_what_the_plan_says(page: Path) -> None:
    plan = json.loads(said("plan", "--model", "DeepSeek-V3", "--json"))
    text = page.read_text()
    assert plan["prefetch"]["verdict"] in text
    assert f"{plan['kv_cache']['tokens_gained']:,}" in text
    for series in plan["series"]:
        for saved in series["saved_bytes"]:
            assert f"{saved:,}" in text


def test_a_hostile_name_is_text(tmp_path: Path) -> None:
    config = load_source()
    path = tmp_path / "<b>&.json"
    path.write_text(json.dumps(config))
    said("plan", "--model", str(path), "--dp", "2", "--html", str(tmp_path / "page.html"))
    assert "<b>" not in re.sub(r"<b>[^<]*</b><small>", "", (tmp_path / "page.html").read_text())


def load_source() -> dict[str, object]:
    from vllm_layershard.models.sources.source import find

    return dict(find("DeepSeek-V3").config.values)


# A browser is no dependency of this project; where the suite runs before a landing, one is
# installed, so that this is skipped on a developer's machine at most.
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
def test_a_real_browser_draws_it(page: Path, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    finished = subprocess.run(
        [
            str(BROWSER), *HEADLESS, f"--user-data-dir={tmp_path / 'profile'}",
            "--enable-logging=stderr", "--window-size=1000,2000", f"--screenshot={shot}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert ":CONSOLE" not in finished.stderr
    assert shot.stat().st_size > 50_000, "an empty page compresses to less"
    dom = subprocess.run(
        [str(BROWSER), *HEADLESS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom",
         page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout  # fmt: skip
    parser = _Page()
    parser.feed(dom)
    assert parser.elements["svg"] == 3
    assert parser.elements["rect"] > 1000
    assert parser.elements["polyline"] == 2


@pytest.mark.parametrize("flag", ["--html", "--trace"])
def test_a_file_that_cannot_be_written(flag: str, tmp_path: Path) -> None:
    file = str(tmp_path / "no" / "file")
    code, message = complaint("plan", "--model", "DeepSeek-V3", flag, file)
    assert code == 2
    assert message.startswith(f"layershard: {flag} {file!r}: cannot be written: ")


def test_check_fails_with_one_only_where_it_does_not_pay() -> None:
    command = ["plan", "--model", "DeepSeek-V3", "--layers", "o_proj", "--check"]
    long = layershard(*command, "--tokens", "64K")
    assert long.code == 0
    short = layershard(*command, "--tokens", "64")
    assert short.code == 1
    assert "prefill does not hide" in short.stderr
    decode = layershard(*command, "--tokens", "64K", "--hide-in", "decode")
    assert decode.code == 1
    assert "decode does not hide" in decode.stderr
    wasteful = ["plan", "--model", "DeepSeek-V3", "--dp", "2", "--layers", "q_b_proj"]
    wasteful += ["--prefetch-step", "40", "--check", "--tokens", "64K"]
    assert "a rank saves -" in layershard(*wasteful).stderr


def test_compare_counts_what_plan_saves() -> None:
    found = json.loads(said("compare", "--model", "DeepSeek-V3", "--json"))
    tp8, dp8, sharded = found["layouts"]
    plan = json.loads(said("plan", "--model", "DeepSeek-V3", "--json"))
    assert [tp8["engines"], dp8["engines"], sharded["engines"]] == [1, 8, 8]
    assert dp8["weight_bytes"] - sharded["weight_bytes"] == plan["memory"]["saved_bytes_min"]
    gained = sharded["engine_tokens"] - dp8["engine_tokens"]
    assert abs(gained - plan["kv_cache"]["tokens_gained"]) <= 1
    assert tp8["tokens"] < dp8["tokens"] < sharded["tokens"]


def test_compare_counts_a_kept_layer_as_plan_does() -> None:
    """Striped: of a kept layer each rank pays all but its own part. Unsharded layouts keep none."""
    flags = ["--model", "DeepSeek-V3", "--json"]
    layouts = ["--layout", "dp8+ep", "--layout", "dp8+ep+striped"]
    plain = json.loads(said("compare", *flags, *layouts))["layouts"]
    kept = json.loads(said("compare", *flags, *layouts, "--keep-first"))["layouts"]
    striped = [*flags, "--placement", "striped"]
    saved = [
        json.loads(said("plan", *striped, *more))["memory"]["saved_bytes_min"]
        for more in ([], ["--keep-first"])
    ]
    assert kept[0] == plain[0]
    assert kept[1]["weight_bytes"] - plain[1]["weight_bytes"] == saved[0] - saved[1] > 0


def test_compare_says_what_does_not_fit_and_what_is_refused() -> None:
    shown = said("compare", "--model", "DeepSeek-V3", "--layout", "dp2+ep", "--hardware", "A100")
    assert "does not fit" in shown
    shown = said("compare", "--model", "DeepSeek-V2-Lite")
    assert "tp8" in shown


@pytest.mark.parametrize("spare_bytes", [-1, 0, 1])
def test_compare_and_plan_agree_on_what_fits_to_the_byte(spare_bytes: int, tmp_path: Path) -> None:
    flags = ["--model", "DeepSeek-V3", "--json"]
    plan = json.loads(said("plan", *flags))
    kept = [
        plan["memory"]["weight_bytes_replicated"] - saved + plan["memory"]["communicator_bytes"]
        for saved in plan["memory"]["saved_bytes"]
    ]
    memory = round((max(kept) + spare_bytes + 0.5) / UTILIZATION)
    assert int(memory * UTILIZATION) == max(kept) + spare_bytes
    device = tmp_path / "device.json"
    device.write_text(json.dumps({"base": "H200", "memory_bytes": memory}))
    flags += ["--hardware", str(device)]
    fits = spare_bytes > 0
    assert json.loads(said("plan", *flags))["memory"]["fits"] is fits
    (layout,) = json.loads(said("compare", *flags, "--layout", "dp8+ep+shard"))["layouts"]
    assert layout["fits"] is fits


def test_compare_takes_stages_that_keep_nothing_of_a_token() -> None:
    """A layer a stage: three of four are linear attention, which has a state and no tokens."""
    flags = ["--model", "Qwen3-Next-80B-A3B-Instruct", "--layout", "pp12", "--layout", "pp48"]
    twelve, every = json.loads(said("compare", *flags, "--json"))["layouts"]
    assert every["fits"]
    assert every["weight_bytes"] < twelve["weight_bytes"]
    assert every["engine_tokens"] > twelve["engine_tokens"] > 0


@pytest.mark.parametrize("text", ["", "tp", "tp0", "tp2tp2", "tp2+x", "pcp2", "8", "tp99999"])
def test_layouts_that_are_none(text: str) -> None:
    from vllm_layershard.errors import ConfigError
    from vllm_layershard.planner.comparison import read_layout

    with pytest.raises(ConfigError, match="such as tp8"):
        read_layout(text)


def test_every_bundled_model_is_listed() -> None:
    from vllm_layershard.models import bundled_names

    found = json.loads(said("models", "--json"))
    assert [model["name"] for model in found["models"]] == list(bundled_names())
    shown = said("models")
    assert all(name in shown for name in bundled_names())


@pytest.mark.parametrize("name", [command.name for command in application().registered_commands])
def test_every_command_shows_an_example(name: str) -> None:
    assert f"Example: layershard {name}" in said(name, "--help")


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_narrow_terminals_and_no_color(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("NO_COLOR", "1")
    shown = said("plan", "--model", "DeepSeek-V3", "--timeline", "--ledger")
    assert "\x1b" not in shown
    assert os.environ["COLUMNS"] == columns
    launch = shown.splitlines()[-1]
    assert launch.startswith("vllm serve ")
    assert max(len(line) for line in shown.splitlines()[:-1]) <= int(columns)


@pytest.mark.parametrize("columns", [50, 120])
def test_a_terminal_gets_colours_and_lines_that_fit(columns: int) -> None:
    terminal, ours = pty.openpty()
    words = [sys.executable, "-m", "layershard_cli", "plan", "--model", "DeepSeek-V3", "--timeline"]
    size = {"COLUMNS": str(columns), "LINES": "60", "TERM": "xterm-256color"}
    unset = ("NO_COLOR", "FORCE_COLOR")
    environment = {k: v for k, v in os.environ.items() if k not in unset} | size
    process = subprocess.Popen(words, stdout=ours, stderr=ours, env=environment)
    os.close(ours)
    raw = b""
    while True:
        try:
            part = os.read(terminal, 1 << 16)
        except OSError:  # how Linux says that the other end is closed
            break
        if not part:
            break
        raw += part
    os.close(terminal)
    assert process.wait() == 0
    text = raw.decode()
    assert "\x1b[1mdeepseek-ai/DeepSeek-V3\x1b[0m: " in text
    assert "\x1b[33mnote:\x1b[0m " in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line for line in plain.splitlines() if not line.startswith("vllm serve")]
    assert max(map(len, lines)) <= columns
    assert "What is sharded" in plain
    assert "█" in plain
    assert "…" not in plain


def test_a_pipe_gets_lines_that_nobody_wrapped() -> None:
    words = [sys.executable, "-m", "layershard_cli", "plan", "--model", "DeepSeek-V3"]
    environment = {k: v for k, v in os.environ.items() if k != "COLUMNS"}
    found = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert "\x1b" not in found.stdout
    (verdict,) = (line for line in found.stdout.splitlines() if line.startswith("verdict"))
    assert "do not enable it there; with placement striped a prefill hides from" in verdict
    assert verdict.endswith("would slow by 12% (estimate for H200)")


@pytest.mark.parametrize("columns", [100, 120])
def test_each_clause_of_a_verdict_begins_a_line_of_a_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    shown = said("plan", "--model", "DeepSeek-V3").splitlines()
    first = next(i for i, line in enumerate(shown) if line.startswith("verdict"))
    last = next(i for i, line in enumerate(shown) if line.startswith("Layer bytes"))
    indent = len(shown[first]) - len(shown[first].removeprefix("verdict").lstrip())
    lines = [line[indent:] for line in shown[first:last]]
    for clause in ("it hides from ", "decode at batch 64 would ", "with placement striped "):
        assert sum(line.startswith(clause) for line in lines) == 1, lines
    assert max(map(len, shown[first:last])) <= columns
