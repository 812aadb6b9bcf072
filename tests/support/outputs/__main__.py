"""Run every command in two checkouts, and print what differs.

    python -m outputs OLD_TREE NEW_TREE

Exit code 0: stdout, stderr and exit codes are equal to the byte, and so are the files written.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from outputs.commands import commands, words, write_inputs

RUN = "import sys; sys.argv[0] = 'layershard'; from layershard_cli.main import run; run()"
WRITTEN = ("page.html", "trace.json")


def bundled(tree: Path) -> list[str]:
    """The names of the models that come with a checkout."""
    found = subprocess.run(
        [sys.executable, "-P", "-c", RUN, "models"],
        env=environment(tree),
        capture_output=True,
        text=True,
        check=True,
    )
    files = tree.glob("vllm_layershard/models/configs/*.json")
    names = sorted(file.stem.partition("--")[2] for file in files)
    assert names, "no model is bundled"
    assert all(name in found.stdout for name in names), "a bundled model is not listed"
    return names


def environment(tree: Path) -> dict[str, str]:
    """For a command of this checkout, in a pipe 100 columns wide, without a network."""
    paths = f"{tree}{os.pathsep}{tree / 'cli'}"
    return os.environ | {"PYTHONPATH": paths, "COLUMNS": "100", "HF_HUB_OFFLINE": "1"}


def output(tree: Path, command: str) -> str:
    """What a command prints and writes, and its exit code."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder)
        finished = subprocess.run(
            [sys.executable, "-P", "-c", RUN, *words(command)],
            cwd=folder,
            env=environment(tree),
            capture_output=True,
            text=True,
            check=False,
        )
        said = [f"exit code {finished.returncode}", finished.stdout, finished.stderr]
        for file in WRITTEN:
            if (folder / file).exists():
                said += [file, (folder / file).read_text()]
        return "\n".join(said)


def main(old: str, new: str) -> int:
    trees = [Path(tree).resolve() for tree in (old, new)]
    asked = commands(bundled(trees[0]))
    with ThreadPoolExecutor(2) as pool:
        before, after = (list(pool.map(lambda c, t=t: output(t, c), asked)) for t in trees)
    differing = [i for i, command in enumerate(asked) if before[i] != after[i]]
    for i in differing:
        print(f"$ layershard {asked[i]}")
        lines = (text[i].splitlines() for text in (before, after))
        print("\n".join(list(difflib.unified_diff(*lines, "before", "after", n=0))[2:]), "\n")
    plans = sum('"digest"' in text for text in after)
    refused = sum(not text.startswith("exit code 0") for text in after)
    print(
        f"{len(asked)} commands, {plans} of them with digests, {refused} refused: "
        f"{len(differing)} differ"
    )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
