"""`streambatch peek`: answers that are here before the run is done."""

import sys

import click


@click.command("peek")
@click.argument("run")
@click.option("-n", "count", type=click.IntRange(1), default=5, show_default=True, help="How many.")
def peek(run: str, count: int) -> None:
    """The first answers of RUN that are already here, as the service's result lines; RUN is a run directory or an OUTPUT."""
    from streambatch.engine import inspect

    for line in inspect.peek(run, count):
        sys.stdout.buffer.write(line.rstrip(b"\n") + b"\n")
    sys.stdout.buffer.flush()
