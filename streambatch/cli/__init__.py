"""The command line: one module per command, loaded only when it is called, so that `--help` stays quick.

Turns flags into calls and endings into exit codes and one sentence; knows nothing of how a run works.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

COMMANDS = {
    "run": "Read, render, shard, submit, poll, merge; the same command again resumes.",
    "preview": "The first requests exactly as they would be sent; sends nothing.",
    "status": "Where a run stands, from another terminal too.",
    "peek": "Answers that are already here, before the run is done.",
    "cancel": "Cancel what is in flight, keep what it finished; stays resumable.",
    "purge": "Delete the run's files at the service.",
    "shard": "Only cut input into batch files; no network.",
    "merge": "Only merge result files by custom_id into input order; no network.",
    "check": "Key, files, batches, model, proxy, certificates: what works from here; costs nothing.",
    "serve": "The local OpenAI-compatible batch server.",
}


class Commands(click.Group):
    """A group that imports a command when it is asked for it, and ends a process as the exit codes say."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(f"streambatch.cli.{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        from streambatch.cli.ending import interrupted

        with interrupted():  # before click sees it, who writes a line of its own
            return super().invoke(ctx)

    def main(  # type: ignore[override]  # it never returns, whatever click's mode
        self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any
    ) -> NoReturn:
        from streambatch.cli.ending import ended  # kept out of the import of this package

        words = list(sys.argv[1:] if args is None else args)
        with ended():
            super().main(words, "streambatch", **{**extra, "standalone_mode": False})
        sys.exit(0)


@click.group(
    "streambatch",
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Options come from flags, else STREAMBATCH_* variables, else a --job file. Docs: docs/cli.md.",
)
@click.version_option(package_name="streambatch-engine", prog_name="streambatch")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Stream a dataset of any size through a provider's batch API: paid once, merged in input order."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
