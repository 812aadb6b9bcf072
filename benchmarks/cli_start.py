"""Whole-process time of `layershard plan`, beside the tools that people would ask instead.

Run: python benchmarks/cli_start.py [rounds]; needs the network once, for the peers.

Each is installed as its users install it: layershard from its wheel and hf-mem in an environment of
their own; accelerate beside this one's torch. All run in turn, and nothing asks the network.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".cache" / "peers"
BESIDE_TORCH = ROOT / ".cache" / "accelerate"
HF_MEM, ACCELERATE = "hf-mem==0.5.6", "accelerate==1.14.0"

COMMANDS = {
    "layershard plan": [str(PEERS / "bin" / "layershard"), "plan", "--model", "DeepSeek-V3"],
    "layershard plan --json": [
        *(str(PEERS / "bin" / "layershard"), "plan", "--model", "DeepSeek-V3", "--json"),
    ],
    "hf-mem --help": [str(PEERS / "bin" / "hf-mem"), "--help"],
    "accelerate estimate-memory --help": [
        *(sys.executable, "-m", "accelerate.commands.accelerate_cli", "estimate-memory", "--help"),
    ],
}


def install_peers() -> None:
    """The peers, and this tree's wheel over what an earlier run installed."""
    if not (PEERS / "bin" / "hf-mem").exists():
        venv.create(PEERS, with_pip=True)
        _pip(PEERS / "bin" / "python", HF_MEM)
    install(PEERS, ROOT)
    if not BESIDE_TORCH.exists():
        _pip(Path(sys.executable), "--no-deps", "--target", str(BESIDE_TORCH), ACCELERATE)


def install(environment: Path, tree: Path) -> None:
    """A tree's wheel into a virtual environment, over what an earlier run installed there."""
    _pip(environment / "bin" / "python", str(tree))
    _pip(environment / "bin" / "python", "--force-reinstall", "--no-deps", str(tree))


def _pip(python: Path, *arguments: str) -> None:
    subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)


def seconds(command: list[str]) -> float:
    """One whole process."""
    started = time.perf_counter()
    subprocess.run(
        command,
        check=True,
        capture_output=True,
        cwd=PEERS,
        env=os.environ | {"PYTHONPATH": str(BESIDE_TORCH) if "-m" in command else ""},
    )
    return time.perf_counter() - started


def main(rounds: int) -> None:
    """Prints the best and the median of each, and the two ratios that the project promises."""
    install_peers()
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for round_ in range(rounds + 1):
        for name, command in COMMANDS.items():
            took = seconds(command)
            if round_:  # the first one fills the caches
                times[name].append(took)
    for name, taken in times.items():
        print(f"{name:34s} best {min(taken):.3f} s, median {statistics.median(taken):.3f} s")
    plan = statistics.median(times["layershard plan"])
    for peer in ("hf-mem --help", "accelerate estimate-memory --help"):
        print(f"layershard plan / {peer}: {plan / statistics.median(times[peer]):.2f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10)
