"""The `layershard` command and its one place for errors and exit codes.

Exit codes: 0 fine; 1 only under `--check`: the plan does not pay; 2 usage, configuration or plan;
3 a model or device that is unknown or cannot be read. Data goes to stdout, messages to stderr.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Annotated, Any, Final

import typer

from layershard_cli.output import complain, discard, emit, printable
from layershard_cli.startup import command_of
from vllm_layershard.errors import HardwareError, LayerShardError, ModelError
from vllm_layershard.version import __version__

_USAGE_ERROR: Any = typer.BadParameter.__base__
"""click's UsageError: newer versions of typer carry click within them."""

COMMANDS: Final = {
    "plan": "What sharding saves on each rank, and whether the movement hides.",
    "map": "Which rank stores which layer.",
    "check": "Check an additional-config against a model and a layout before launching it.",
    "models": "The models that come with the planner, and the architectures that it knows.",
    "hardware": "The devices that the planner knows, or every number of one with its source.",
    "calibrate": "Measure this machine: products, copies and broadcasts. Writes a profile for "
    "--hardware.",
    "compare": "Which layout of a model holds the most KV-cache tokens.",
    "sweep": "Remove the shared memory that dead servers of yours left on this node.",
}
"""What the help lists. Each is the function `NAME_command` of the module
`layershard_cli.commands.NAME`, with the same first line."""


def _print_version(wanted: bool) -> None:
    if wanted:
        emit(f"layershard {__version__}")
        raise typer.Exit


def main(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Plan layer sharding for vLLM: what it saves, whether it hides, which rank owns what.

    Example: layershard plan --model DeepSeek-V3
    """


def application(commands: Iterable[str] = tuple(COMMANDS)) -> typer.Typer:
    """The Typer application with these commands; only their modules are imported.

    Without any it lists all of them, and runs none.
    """
    app = typer.Typer(
        name="layershard",
        help="Plan layer sharding for vLLM: what it saves, whether it hides, which rank owns what.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(main)
    named = list(commands)
    for name in named:
        module = import_module(f"layershard_cli.commands.{name}")
        app.command(name)(getattr(module, f"{name}_command"))
    for name in () if named else COMMANDS:
        app.command(name, help=COMMANDS[name])(_listed)
    return app


def _listed() -> None:
    """Stands in the help for a command that was not asked for."""
    raise AssertionError("a command that runs is imported")


def _asked(words: Sequence[str], environment: Iterable[str]) -> Iterable[str]:
    """The commands that the words need: the first of them, none for help, version or a slip.

    Behind `--` any may follow; a shell that completes has its words in the environment.
    """
    first = [word for word in words[:1] if word in COMMANDS]
    if first:
        return first
    if "--" in words or any(name.endswith("_COMPLETE") for name in environment):
        return COMMANDS
    return ()


def run() -> None:
    """The console script: runs the app; every expected error ends in one message here.

    Without an argument it prints the help, as `--help` does: to stdout, with exit code 0.
    """
    if sys.stdout is None:
        complain("stdout is closed; give it somewhere to write")
        sys.exit(2)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        command = command_of(application(_asked(sys.argv[1:], os.environ)))
        code = command(sys.argv[1:] or ["--help"], standalone_mode=False) or 0
    except SystemExit as ended:
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        code = 0  # a help that nobody reads on, which click ends with 1
    except _USAGE_ERROR as error:
        error.message = printable(error.message)
        try:
            error.show()
        except OSError:
            discard(sys.stderr)
        sys.exit(error.exit_code)
    except LayerShardError as error:
        complain(str(error))
        sys.exit(3 if isinstance(error, (ModelError, HardwareError)) else 2)
    except OSError as error:
        complain(f"stdout cannot be written: {error.strerror}")
        discard(sys.stdout)
        sys.exit(2)
    sys.exit(code)
