"""`layershard calibrate`: measures this machine. What measures lives in runtime, with torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from layershard_cli.output import emit, tell
from vllm_layershard.bounded_file import UnwritableError, write_named
from vllm_layershard.errors import HardwareError

_MODULE = "vllm_layershard.measure.calibrate"


def calibrate_command(
    ranks: Annotated[
        int, typer.Option("--ranks", min=2, max=64, help="Ranks on this machine, one a device.")
    ] = 2,
    backend: Annotated[
        str, typer.Option("--backend", help="nccl, hccl, gloo, or auto: what the devices have.")
    ] = "auto",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the profile there instead of to stdout."),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", help="The profile's name.  [default: the device's]")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer and smaller messages.")] = False,
) -> None:
    """Measure this machine: products, copies and broadcasts. Writes a profile for --hardware.

    Example: layershard calibrate --ranks 2 --backend gloo --output here.json
    """
    if backend not in ("auto", "nccl", "hccl", "gloo"):
        raise typer.BadParameter(f"--backend {backend}: choose nccl, hccl, gloo or auto")
    if name is not None and not (name and name.isprintable()):
        raise typer.BadParameter(f"--name {name!r}: give a printable text, or the profile is none")
    import subprocess  # takes milliseconds that no other command needs

    existed = output is not None and output.exists()
    if output is not None:
        _write(output, "", append=True)  # now, not after a minute's work
    command = [sys.executable, "-m", _MODULE, "--ranks", str(ranks), "--backend", backend]
    command += ["--name", name] if name is not None else []
    command += ["--quick"] if quick else []
    finished = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if finished.returncode:
        if output is not None and not existed:
            output.unlink(missing_ok=True)
        raise HardwareError("calibrate: nothing was measured; the reason stands above")
    text = finished.stdout.decode().strip()
    if output is None:
        for line in text.splitlines():
            emit(line)
        return
    _write(output, text + "\n")
    tell(f"wrote {output}; use it with layershard plan --hardware {output}")


def _write(output: Path, text: str, *, append: bool = False) -> None:
    try:
        write_named(output, text.encode(), append=append)
    except UnwritableError as error:
        raise HardwareError(f"calibrate: {output} {error}") from None
