"""`streambatch shard`: only cut; no network, no event loop, and rich only for a terminal that is shown something."""

import sys
from typing import Any

import click

from streambatch.cli.flags import takes


@takes("shard", short_help="Only cut input into batch files.")
@click.argument("inputs", nargs=-1, metavar="INPUT...")
def shard(inputs: tuple[str, ...] = (), **values: Any) -> None:
    """Cut INPUT into batch files DIR/shard-000000.jsonl and on; rows that can't be sent go to DIR/errors.jsonl."""
    from streambatch import configure
    from streambatch.cli import ending
    from streambatch.edge.cutting import cut
    from streambatch.errors import StreambatchError
    from streambatch.reports import tell

    if not inputs or "output" not in values:
        raise click.UsageError("Name at least one INPUT, and where the shards go with -o DIR.")
    configure.profile(values)
    try:
        report = cut(
            inputs,
            values["output"],
            asked=configure.asked(values),
            limits=configure.limits(values),
            workers=configure.workers(values),
            if_exists=values.get("if_exists", "fail"),
            limit=values.get("limit"),
        )
    except StreambatchError as error:
        tell(_summary("error", error.exit_code, str(error), {}), values)
        raise
    exceeded = configure.allowance(values).exceeded(report.bad, report.rows)
    words = f"{report.good:,} rows in {report.shards:,} shards in {values['output']}"
    if report.existed:
        words = f"{values['output']} holds shards already; skipped"
    if report.bad:
        words += f"; {report.bad:,} bad rows in {report.errors}"
    tell(_summary("finished", 6 if exceeded else 0, f"{words}.", report), values)
    if exceeded:
        ending.leave(6, f"{words}, more than --max-errors allows; nothing was sent.")
    if not values.get("quiet"):
        sys.stderr.write(f"{words}\n")


def _summary(state: str, code: int, message: str, report: Any) -> dict[str, Any]:
    import msgspec

    return {"schema_version": 1, "state": state, "exit_code": code, "message": message, **msgspec.to_builtins(report)}
