"""`make demo`: plan, serve with and without sharding, compare the answers and the bytes.

Real parts only: the planner's command, the trained model, two real servers on two data-parallel
ranks, the OpenAI client. Exits with 1 if anything differs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from recital import model_path
from serving.answers import Answer, ask, compare
from serving.plan import planned_series
from serving.questions import questions
from serving.server import Server

LAYERS = ["o_proj", "q_b_proj"]
SHOWN = 3

console = Console()


def step(text: str) -> None:
    console.rule(f"[bold]{text}", align="left")


def layershard(*arguments: str) -> None:
    """Run the planner's command and show what it prints."""
    console.print(f"$ layershard {' '.join(arguments)}", style="dim", highlight=False)
    script = Path(sys.executable).with_name("layershard")
    subprocess.run([str(script), *arguments], check=True)


def table_of_bytes(model: Path, report_dir: Path) -> tuple[Table, bool]:
    """Bytes per rank before and after, as measured, against the plan; and whether all are equal."""
    plan = planned_series(model, LAYERS, 1)
    table = Table("rank", "series", "owns layers", "before", "owned", "slots", "after", "plan says")
    equal = True
    for rank in (0, 1):
        report = json.loads((report_dir / f"layershard-rank{rank}.json").read_text())
        for series in report["series"]:
            planned = plan[series["name"]]
            after = series["resident_bytes"] + series["slot_bytes"]
            says = planned["resident_bytes"][rank] + planned["slot_bytes"]
            equal = equal and after == says
            table.add_row(
                str(rank),
                series["name"],
                " ".join(map(str, series["owned_layers"])),
                *(f"{series[key]:,}" for key in ("replicated_bytes", "resident_bytes")),
                f"{series['slot_bytes']:,}",
                f"{after:,}",
                f"{says:,} {'=' if after == says else 'DIFFERS'}",
            )
    return table, equal


def table_of_answers(model: Path, prompts: list[list[int]], said: list[Answer]) -> Table:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    table = Table("asked (its end)", "both servers say")
    for prompt, answer in list(zip(prompts, said, strict=True))[:SHOWN]:
        table.add_row(tokenizer.decode(prompt)[-40:], answer.text)
    return table


def main() -> int:
    step("1. Plan DeepSeek-V3 on a node of eight")
    layershard("plan", "--model", "DeepSeek-V3")

    step("2. A small DeepSeek-V3 that recites a page (trained once, one to four minutes)")
    model = model_path()
    layershard(
        "plan", "--model", str(model.relative_to(Path.cwd())), "--dp", "2",
        "--no-ep", "--layers", ",".join(LAYERS),
    )  # fmt: skip

    prompts = questions(model)
    with tempfile.TemporaryDirectory() as scratch:
        report_dir = Path(scratch) / "reports"
        step("3. vllm serve, two data-parallel ranks, without sharding (about a minute)")
        with Server(model, Path(scratch) / "plain.log", api_servers=None) as server:
            plain = ask(server, prompts)
        step("4. the same with layer sharding (about a minute)")
        sharding = {"layers": LAYERS, "report_dir": str(report_dir)}
        with Server(model, Path(scratch) / "sharded.log", sharding=sharding) as server:
            sharded = ask(server, prompts)
        bytes_table, bytes_equal = table_of_bytes(model, report_dir)

    step("5. Compared")
    console.print(table_of_answers(model, prompts, sharded))
    console.print(bytes_table)
    found = compare(sharded, plain)
    console.print(
        f"{found.same_tokens} of {found.of} answers equal; logprobs "
        f"{'identical' if found.identical_logprobs else 'DIFFERENT'}; bytes "
        f"{'equal to' if bytes_equal else 'DIFFERENT from'} the plan"
    )
    same = found.same_tokens == found.of and found.identical_logprobs and bytes_equal
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
