"""`streambatch run`: flags -> Config -> engine -> summary and exit code."""

import contextlib
import os
import shlex
import sys
from typing import Any

import click

from streambatch.cli.flags import takes


@takes("run", short_help="Run a dataset through a batch API.")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
def run(inputs: tuple[str, ...] = (), **values: Any) -> None:
    """Read, render, shard, submit, poll and merge INPUT into OUTPUT. The same command again resumes."""
    from streambatch import api, endings
    from streambatch.cli import visit
    from streambatch.configure import configure
    from streambatch.engine import run as run_engine
    from streambatch.errors import ConfigError, StorageError
    from streambatch.reports import tell

    piped = "... | " if "-" in inputs else ""
    command = piped + shlex.join(["streambatch", *sys.argv[1:]])
    if values.get("json") and values.get("output") == "-":
        raise click.UsageError("Both --json and -o - would write to stdout; leave one out.")
    try:
        config = configure(inputs, values, os.environ, command)
    except ConfigError as error:
        with contextlib.suppress(StorageError):  # the first cause is told
            tell(endings.of_error(error, values.get("output", ""), "", None), values)
        raise
    place = visit.Place(config.output, config.run_dir, command, config.local)
    visit.visit(place, lambda listener: run_engine(config, api.connect, listener), values)
