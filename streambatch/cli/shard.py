"""`streambatch shard`: only cut; no network, no event loop, and rich only for a terminal that is shown something."""

from typing import Any

import click

from streambatch.cli.flags import takes


@takes("shard", short_help="Only cut input into batch files.")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
def shard(inputs: tuple[str, ...] = (), **values: Any) -> None:
    """Cut INPUT into batch files DIR/shard-000000.jsonl and on; rows that can't be sent go to DIR/errors.jsonl."""
    from streambatch import configure
    from streambatch.cli import offline
    from streambatch.edge.cutting import cut
    from streambatch.errors import StreambatchError

    if not inputs or "output" not in values:
        raise click.UsageError("Name at least one INPUT, and where the shards go with -o DIR.")
    offline.check(values, "folder")
    profile = configure.profile(values)
    try:
        report = cut(
            inputs,
            values["output"],
            asked=configure.asked(values),
            limits=configure.limits(values),
            workers=configure.workers(values),
            if_exists=values.get("if_exists", "fail"),
            limit=values.get("limit"),
            profile=profile,
        )
    except StreambatchError as error:
        offline.failed(error, values)
        raise
    rows, shards = offline.counted(report.good, "row", "rows"), offline.counted(report.shards, "shard", "shards")
    words = f"{rows} in {shards} in {values['output']}"
    if report.existed:
        words = f"{values['output']} holds shards already; left as it is"
    if report.bad:
        words += f"; {offline.counted(report.bad, 'bad row', 'bad rows')} in {report.errors}"
    offline.done(words, report, configure.allowance(values).exceeded(report.bad, report.rows), values)
