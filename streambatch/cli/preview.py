"""`streambatch preview`: the first requests on stdout, nothing sent."""

from typing import Any

import click

from streambatch.cli.flags import takes

MOST_SAID = 5  # rows that can't be sent


@takes("preview", short_help="The first requests.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option("-n", "n", type=click.IntRange(1), default=3, show_default=True, help="How many.")
def preview(inputs: tuple[str, ...], n: int, **values: Any) -> None:
    """The first requests of INPUT exactly as they would be sent, one a line. Sends nothing."""
    from streambatch import previewing, reports
    from streambatch.cli.ending import say
    from streambatch.configure import asked, limits, profile

    seen = previewing.preview(inputs, asked(values), limits(values), n, profile=profile(values))
    for words in seen.unfit[:MOST_SAID]:
        say(f"Not sent: {words}.")
    if len(seen.unfit) > MOST_SAID:
        say(f"Not sent: {len(seen.unfit) - MOST_SAID:,} more of the rows looked at.")
    if not seen.requests and not seen.unfit:
        say("There are no rows in the input.")
    reports.put_out(b"".join(seen.requests))
