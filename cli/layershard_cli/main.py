"""The `layershard` command and its one place for errors and exit codes.

Exit codes: 0 fine; 1 only under `--check`: the plan does not pay; 2 usage, configuration or plan;
3 a model or device that is unknown or cannot be read. Data goes to stdout, messages to stderr.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable
from importlib import import_module
from typing import Annotated, Any, Final

import typer

from layershard_cli.output import complain, discard, emit, printable
from layershard_cli.startup import command_of
from vllm_layershard.errors import HardwareError, LayerShardError, ModelError
from vllm_layershard.version import __version__

_USAGE_ERROR: Any = typer.BadParameter.__base__
"""click's UsageError: newer versions of typer carry click within them."""

COMMANDS: Final = ("plan", "map", "check", "models", "hardware", "calibrate", "compare", "sweep")
"""Each is the function `NAME_command` of the module `layershard_cli.commands.NAME`."""


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


def application(commands: Iterable[str] = COMMANDS) -> typer.Typer:
    """The Typer application with these commands; only their modules are imported."""
    app = typer.Typer(
        name="layershard",
        help="Plan layer sharding for vLLM: what it saves, whether it hides, which rank owns what.",
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(main)
    for name in commands:
        module = import_module(f"layershard_cli.commands.{name}")
        app.command(name)(getattr(module, f"{name}_command"))
    return app


def _asked(first: list[str]) -> Iterable[str]:
    """The commands that the first word needs: one, none for the version, all for help or a slip."""
    if first == ["--version"]:
        return ()
    return [word for word in first if word in COMMANDS] or COMMANDS


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
        command = command_of(application(_asked(sys.argv[1:2])))
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
