"""`streambatch purge`: delete the run's files at the service, and say which."""

import sys
from typing import Any

import click

from streambatch.cli.flags import takes

OWN = False  # a flag that no variable sets: STREAMBATCH_LOCAL is about the embedded server


@takes("purge", short_help="Delete the run's files at the service.")
@click.argument("run")
@click.option("--dry-run", is_flag=True, help="Delete nothing; show what would be deleted.", allow_from_autoenv=OWN)
@click.option(
    "--all",
    "everything",
    is_flag=True,
    help="Also what is not merged: uncollected results are lost.",
    allow_from_autoenv=OWN,
)
@click.option(
    "--local",
    "local_state",
    is_flag=True,
    help="Then remove the run's own state too, never the output.",
    allow_from_autoenv=OWN,
)
@click.option(
    "--receipt", type=click.Path(), default=None, help="A file that gets the receipt as JSON.", allow_from_autoenv=OWN
)
def purge(
    run: str,
    dry_run: bool = False,
    everything: bool = False,
    local_state: bool = False,
    receipt: str | None = None,
    **values: Any,
) -> None:
    """Delete the files of RUN at the service, once their rows are merged; RUN is a run directory or an OUTPUT."""
    from streambatch.api import ReachOptions
    from streambatch.cli import ending
    from streambatch.purging import purge_sync
    from streambatch.reports import tell

    reached = {name: value for name, value in values.items() if name in ReachOptions.__annotations__}
    if everything and not dry_run and not values.get("yes"):
        _agree(purge_sync(run, all=True, local=local_state, dry_run=True, **reached).rows_lost)
    made = purge_sync(run, all=everything, local=local_state, dry_run=dry_run, receipt=receipt, **reached)
    if dry_run and not values.get("json"):
        for file in made.files:
            if file.state == "would_delete":
                click.echo(f"{file.kind} {file.id} {file.shard}")
    tell(made, values)
    ending.leave(made.exit_code, made.message)


def _agree(rows: int) -> None:
    """Results that were paid and never collected are not lost without a word of the user."""
    from streambatch.errors import ConfigError

    if not rows:
        return
    lost = f"{rows:,} rows have paid results that are not in the output; with --all they are lost and could only be bought again"
    if not sys.stdin.isatty():
        raise ConfigError(f"{lost}: run the run's command first to collect them, or say --yes.")
    if not click.confirm(f"{lost[0].upper()}{lost[1:]}. Delete them?", err=True):
        raise ConfigError("Nothing was deleted.")
