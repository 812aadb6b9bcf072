"""Keeps typer from building a schema for every flag that was not given.

Typer 0.29 reads each value through a pydantic schema, which takes a tenth of a second to import and
build for a command of twenty flags. A flag that was not given, or that is a string already, needs
none. Where typer works otherwise, nothing is changed and the command starts slower.
"""

from __future__ import annotations

from typing import Any, Final

import typer

_SLOT: Final = "_runtime_param"
"""Where typer 0.29 keeps what coerces a parameter's value; None until it is first asked for."""


class _OnDemand:
    """Stands in the slot: passes what needs no schema, gives way to typer's own for the rest."""

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """As typer's `RuntimeParam.coerce`."""
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        if isinstance(value, str) and param.type_descriptor.annotation is str:
            info = param.type_descriptor.parameter_info
            if info.parser is None and not param.multiple:
                return value
        setattr(param, _SLOT, None)
        return param.get_runtime_param().coerce(value, param=param, ctx=ctx)


def command_of(app: typer.Typer) -> Any:
    """The command that typer makes of an application."""
    command = typer.main.get_command(app)
    for each in (command, *getattr(command, "commands", {}).values()):
        for param in each.get_params(typer.Context(each)):  # with the one for --help
            if getattr(param, _SLOT, 0) is None and hasattr(param, "get_runtime_param"):
                setattr(param, _SLOT, _OnDemand())
    return command
