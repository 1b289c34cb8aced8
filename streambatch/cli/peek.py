"""`streambatch peek`: answers that are here before the run is done."""

import click


@click.command("peek")
@click.argument("run")
@click.option("-n", "count", type=click.IntRange(1), default=5, show_default=True, help="How many.")
def peek(run: str, count: int) -> None:
    """The first answers of RUN that are here: merged ones, else as the service sent them. RUN is a run directory or an OUTPUT."""
    from streambatch import reports
    from streambatch.cli.ending import say
    from streambatch.engine import inspect

    lines = inspect.peek(run, count)
    if not lines:
        say("No answers are here yet.")
    reports.put_out(b"".join(line.rstrip(b"\n") + b"\n" for line in lines))
