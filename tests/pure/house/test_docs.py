"""The documentation is true: its commands run, its code works, its links lead somewhere."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from console import said
from serving.server import Server
from vllm_layershard.config import OPTIONS
from vllm_layershard.schema import validated

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
PAYING = (ROOT / "docs" / "paying.md").read_text()
HANG_S = 120
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]


def lines_shown() -> list[str]:
    """Every line of a ```bash block, without its comment and the variables set before it."""
    return [
        re.sub(r"^(\w+=\S+ )+", "", line.partition("  #")[0].strip())
        for page in PAGES
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    ]


def commands(*program: str) -> list[str]:
    """Every line of a ```bash block that starts with these words."""
    return [line for line in lines_shown() if line.split()[: len(program)] == [*program]]


def test_no_other_programs_are_shown_than_those_tested_here():
    shown = {line.split()[0] for line in lines_shown()}
    assert shown == {"make", "pip", "python3.11", "layershard", "vllm"}


def test_make_setup_runs_the_lines_that_install_on_a_cpu():
    """So CI, which begins with `make setup`, runs what the README shows."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    (block,) = [block for block in blocks if "[cpu]" in block]
    venv, *installing = block.splitlines()
    assert venv == "python3.11 -m venv .venv && . .venv/bin/activate"
    assert installing[-1] == "vllm --version"
    recipe = (ROOT / "Makefile").read_text().partition("\n$(READY): pyproject.toml")[2]
    ran = [line.removeprefix("\t") for line in recipe.partition("\n\n")[0].splitlines()[1:]]
    assert ran[0] == "$(PYTHON) -m venv .venv"
    assert ran[1 : 1 + len(installing)] == installing


@pytest.mark.parametrize("target", ["test", "test-fast"])
def test_both_halves_run_and_report_whichever_fails(target):
    """So does the training of the models, beside the first half."""

    def ended(training: str, one: str, other: str) -> subprocess.CompletedProcess[str]:
        parts = [
            f"TRAIN=(echo the training; {training})",
            f"SIDE_BY_SIDE={one}",
            f"ONE_BY_ONE=echo the second; {other}",
        ]
        command = ["make", "--silent", "--old-file=.venv/.ready", target, *parts]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    for failing in range(3):
        finished = ended(*("false" if part == failing else "true" for part in range(3)))
        assert finished.returncode != 0
        assert "the second" in finished.stdout
        assert ("the training" in finished.stdout) == (failing == 0)
    finished = ended("true", "true", "true")
    assert finished.returncode == 0, finished.stderr


def test_no_extra_names_what_no_index_resolves_together():
    """vllm-ascend's releases pin a torch and a triton-ascend that vLLM's wheels exclude."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [line for lines in project["optional-dependencies"].values() for line in lines]
    assert not [line for line in asked if line.startswith(("vllm-ascend", "torch-npu"))]


def printed(command: str, directory: Path) -> str:
    """What a command of the planner prints, its words a space apart."""
    _, *arguments = shlex.split(command)
    with contextlib.chdir(directory):
        return " ".join(said(*arguments, COLUMNS="200").split())


def test_the_first_command_of_the_readme_prints_the_same_as_a_process_of_its_own(tmp_path):
    command = commands("layershard")[0]
    program, *arguments = shlex.split(command)
    finished = subprocess.run(
        [str(Path(sys.executable).with_name(program)), *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_S,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert finished.returncode == 0, finished.stderr
    assert " ".join(finished.stdout.split()) == printed(command, tmp_path)


def shown_outputs() -> list[tuple[str, str]]:
    """Every planner's command with a ```text block right behind it, and that block."""
    pairs = re.compile(r"```bash\n(layershard [^\n]*)\n```\n\n```text\n(.*?)```", re.DOTALL)
    return [pair for page in PAGES for pair in pairs.findall(page.read_text())]


MEASURES = pytest.mark.matrix(part="tools")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=MEASURES if command.split()[1] == "calibrate" else ())
        for command in sorted(set(commands("layershard")) - {shown for shown, _ in shown_outputs()})
    ],
)
def test_the_planners_commands_run(command, tmp_path):
    assert printed(command, tmp_path)


@pytest.mark.parametrize(("command", "shown"), shown_outputs())
def test_figures_that_are_shown_are_those_that_are_printed(command, shown, tmp_path):
    output = printed(command, tmp_path)
    for line in shown.splitlines():
        assert " ".join(line.split()) in output, line


def test_the_page_on_whether_it_pays_shows_its_figures():
    assert PAYING.count("```text") == len([c for c, _ in shown_outputs() if c in PAYING]) >= 8


def test_the_readmes_results_are_those_of_the_page_on_whether_it_pays():
    _, table, _ = re.split(
        r"^(\| model .*?)\n\n", README, maxsplit=1, flags=re.DOTALL | re.MULTILINE
    )
    _, _, *rows = table.splitlines()
    assert len(rows) == 3
    for row in rows:
        model, devices, *results = (cell.strip() for cell in row.strip("|").split("|"))
        hardware = devices.split()[-1]
        outputs = "\n".join(
            shown
            for command, shown in shown_outputs()
            if f"--model {model} " in command and f"--hardware {hardware}" in command
        )
        for figure in re.findall(r"[\d.,]+(?: GiB|%)?", " ".join(results)):
            assert figure in outputs, figure


def test_the_table_of_performance_shows_figures_of_the_runs_behind_it():
    page = (ROOT / "docs" / "performance.md").read_text()
    runs = (ROOT / "docs" / "benchmarks" / "2026-11.md").read_text()
    rows = re.findall(r"^\| ([\d.]+) \|(.*)\|$", page, re.MULTILINE)
    assert len(rows) == 6
    for ratio, row in rows:
        measured = "\n".join(re.findall(rf"^\| {re.escape(ratio)} \|.*$", runs, re.MULTILINE))
        for figure in row.split("|"):
            assert f"| {figure.strip()} " in measured, figure


def served_by_tests(tokens: list[str], value: object) -> bool:
    """Whether a server of the tests is started with all these words."""
    run = Server(Path("MODEL"), Path("log"), sharding=value).command
    return {*tokens[1:]} <= {*run}


def printed_by_the_planner(command: str, tokens: list[str], names: list[str], at: Path) -> bool:
    """Whether `layershard plan` prints this very command for its model, size and layers."""
    size = tokens[tokens.index("--data-parallel-size") + 1]
    ep = " --ep" if "--enable-expert-parallel" in tokens else ""
    prefill = tokens[tokens.index("--max-num-batched-tokens") + 1]
    plan = f"layershard plan --model {tokens[2]} --dp {size}{ep} --layers {','.join(names)}"
    plan += f" --tokens {prefill}"
    return command in printed(plan, at)


def test_the_servers_commands_are_those_that_tests_run_or_the_planner_prints(tmp_path):
    shown = commands("vllm", "serve")
    assert shown
    for command in shown:
        tokens = shlex.split(command)
        value = json.loads(tokens[tokens.index("--additional-config") + 1])["layer_sharding"]
        names = list(validated(value).layers)
        assert served_by_tests(tokens, value) or printed_by_the_planner(
            command, tokens, names, tmp_path
        ), command


def test_make_targets_exist():
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for command in commands("make"):
        assert command.split()[1] in targets


def test_pip_extras_exist():
    project = (ROOT / "pyproject.toml").read_text()
    shown = set(re.findall(r"pip install [^`\n]*'\.\[(\w+)\]'", README))
    assert shown == {"cpu", "cuda"}
    for extra in shown:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def python_blocks(page: Path) -> list[tuple[str, str]]:
    """Every ```python block, and the ```text block right behind it, or ""."""
    pairs = re.compile(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", re.DOTALL)
    return pairs.findall(page.read_text())


def test_the_librarys_examples_print_what_is_shown(monkeypatch):
    """As a reader would type them, one after the other, without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    blocks = python_blocks(ROOT / "docs" / "library.md")
    assert len(blocks) >= 6
    names: dict = {}
    for code, shown in blocks:
        out = io.StringIO()
        with redirect_stdout(out):
            exec(code, names)
        assert out.getvalue() == shown, code


def test_every_python_block_of_the_pages_is_run():
    pages = {page.name for page in PAGES if python_blocks(page)}
    assert pages == {"library.md", "manual-api.md", "oshard-manager.md"}


def test_configurations_shown_are_valid():
    page = (ROOT / "docs" / "configuration.md").read_text()
    for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL):
        validated(json.loads(block)["layer_sharding"])
    for key in OPTIONS:
        assert f"| `{key}` |" in page


def anchors_of(page: Path) -> set[str]:
    """What a link to one of the page's headings ends in, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]*))?\)", page.read_text()):
        if not target.startswith("https://"):
            led_to = page.parent / target if target else page
            assert led_to.exists(), target
            assert not anchor or anchor in anchors_of(led_to), f"{target}#{anchor}"


def test_every_test_that_a_page_names_is_there():
    named = {
        one
        for page in PAGES
        for one in re.findall(r"`(tests/[\w/]+\.py(?:::\w+)?)", page.read_text())
    }
    assert len(named) > 10
    for one in named:
        file, _, test = one.partition("::")
        text = (ROOT / file).read_text() if (ROOT / file).exists() else ""
        assert text, f"{file} is not there"
        assert not test or f"def {test}(" in text, f"{one} is not there"


def test_the_words_are_borne_by_the_code_that_the_table_names():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    section = page.partition("## Words\n")[2].partition("### To rename")[0]
    rows = re.findall(r"^\| (.*?) \| (.*) \|([^|]*)\|$", section, re.MULTILINE)[2:]
    words = [word for cell, _, _ in rows for word in cell.split(", ")]
    assert len(words) == len(set(words)) > 30
    sources = {
        file: file.read_text()
        for root in ("vllm_layershard", "cli")
        for file in (ROOT / root).rglob("*.py")
    }
    folders = {f"{file.parent.name}/" for file in sources}
    for _, _, borne in rows:
        for name in re.findall(r"`([^`]+)`", borne):
            for part in () if name in folders else name.split("."):
                assert any(re.search(rf"\b{part}\b", text) for text in sources.values()), name


def test_the_map_shows_every_module_and_folder_of_the_top():
    page = (ROOT / "CONTRIBUTING.md").read_text()
    top = [*(ROOT / "vllm_layershard").iterdir(), *(ROOT / "tests").iterdir()]
    shown = page.partition("## The map of the house\n")[2].partition("\n## ")[0]
    for path in top:
        is_package = path.is_dir() and any(path.rglob("*.py"))
        if is_package or (path.suffix == ".py" and path.parent.name == "vllm_layershard"):
            assert re.search(rf"\b{path.name}\b", shown), path.name


PLATFORM_PLUGINS = {"layershard_cpu_dp", "ascend"}


def test_a_shown_vllm_plugins_names_a_platforms_plugin_too():
    """It is one list of all that vLLM loads: `layershard` alone removes the platform itself."""
    sources = [*PAGES, *ROOT.glob("vllm_layershard/**/*.py")]
    shown = [
        (source.name, names)
        for source in sources
        for names in re.findall(r"VLLM_PLUGINS=([\w,]+)", source.read_text())
    ]
    assert len(shown) >= 2
    for source, names in shown:
        assert set(names.split(",")) & PLATFORM_PLUGINS, f"{source}: {names}"
        assert "layershard" in names.split(","), f"{source}: {names}"
