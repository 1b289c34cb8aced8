"""Turns the table of options into click's flags, with their variables and the job file behind them.

The values a command gets are in their plain form already; what was not given is absent.
"""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from streambatch.errors import ConfigError
from streambatch.options import Kind, Option, of_command, parse, read_job

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:
    _ParamType = click.ParamType  # not generic in older releases


class Value(_ParamType):
    """One option's kind as click sees it: parsed by the same code that reads a job file."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.kind.value

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return parse(self.option, value, "it")
        except ConfigError as error:
            return self.fail(str(error).removeprefix("it: ").rstrip("."), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return "[" + "|".join(self.option.choices) + "]" if self.option.choices else self.name


class Pair(Value):
    """One of several `NAME=VALUE`; in a variable, one a line."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return super().convert(value if isinstance(value, str) else (value,), param, ctx)[0]

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line for line in rv.split("\n") if line.strip()]


class Flag(click.Option):
    """An option whose complaints name its variable too, where that is set."""

    def get_error_hint(self, ctx: click.Context | None) -> str:
        variable = f"STREAMBATCH_{str(self.name).upper()}"
        hint = super().get_error_hint(ctx)
        return f"{hint} or {variable}" if variable in os.environ else hint


def takes(command: str, **more: Any) -> Callable[[Callable[..., None]], click.Command]:
    """Makes a function a command with its options of the table; it gets only those that were given, as keywords."""

    def decorate(function: Callable[..., None]) -> click.Command:
        settings = {"auto_envvar_prefix": "STREAMBATCH"}
        command_of: Callable[[Callable[..., None]], click.Command] = click.command(
            command, context_settings=settings, **more
        )
        made = command_of(_given(function))
        own = made.params
        made.params = [p for p in own if isinstance(p, click.Argument)]
        made.params += [_flag(option) for option in of_command(command)]
        made.params += [p for p in own if not isinstance(p, click.Argument)]
        return made

    return decorate


def _given(function: Callable[..., None]) -> Callable[..., None]:
    """Drop what was not given. Keeps click's parameters, which sit on the function."""

    def call(**values: Any) -> None:
        function(**{name: value for name, value in values.items() if value is not None and value != ()})

    call.__doc__ = function.__doc__
    call.__click_params__ = getattr(function, "__click_params__", [])  # type: ignore[attr-defined]
    return call


def _flag(option: Option) -> Flag:
    names = [option.flag, option.name, *([option.short] if option.short else [])]
    if option.name == "job":
        return Flag(names, type=Value(option), help=option.help, is_eager=True, callback=_load_job, expose_value=False)
    told = f"{option.help}  [{option.default}]" if option.default not in ("none", "required") else option.help
    if option.kind is Kind.FLAG:
        return Flag(names, type=Value(option), is_flag=True, flag_value=True, default=None, help=told)
    kind = Pair(option) if option.many else Value(option)
    return Flag(names, type=kind, multiple=option.many, help=told)


def _load_job(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
    """Put a job file's values where click looks after flags and variables. Keys of other commands are left alone."""
    if value is not None:
        ctx.default_map = {**(ctx.default_map or {}), **read_job(value)}
