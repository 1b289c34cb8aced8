"""`streambatch merge`: only merge; no network, no event loop, nothing that a terminal would need."""

from typing import Any

import click

from streambatch.cli.flags import takes


@takes("merge", short_help="Only merge result files.")
@click.argument("input_path", metavar="INPUT", required=False)
@click.argument("results", nargs=-1, metavar="RESULT...")
def merge(input_path: str | None = None, results: tuple[str, ...] = (), **values: Any) -> None:
    """Merge RESULT files, in any order, into the order of INPUT by custom_id; rows without a result go to OUTPUT.errors."""
    from streambatch import configure
    from streambatch.cli import offline
    from streambatch.edge.joining import join
    from streambatch.errors import StreambatchError

    if input_path is None or not results or "output" not in values:
        raise click.UsageError("Name an INPUT, at least one RESULT, and where the answers go with -o OUTPUT.")
    offline.check(values, "file")
    named = {"id_field": "id", "emit": "emit", "column": "column", "endpoint": "endpoint", "if_exists": "if_exists"}
    given = {parameter: values[name] for parameter, name in named.items() if name in values}
    try:
        report = join([input_path], results, values["output"], workers=configure.workers(values), **given)
    except StreambatchError as error:
        offline.failed(error, values)
        raise
    words = f"{report.done:,} of {offline.counted(report.rows, 'row', 'rows')} in {values['output']}"
    if report.existed:
        words = f"{values['output']} exists already; left as it is"
    if report.errors:
        words += f"; {report.errors:,} without an answer in {report.errors_path}"
    for count, what in (
        (report.unknown, "of no row"),
        (report.duplicate, "more than once"),
        (report.nameless, "without a custom_id"),
    ):
        words += f"; {offline.counted(count, 'result', 'results')} {what}" if count else ""
    if report.torn:
        words += f"; cut short inside of a line: {', '.join(report.torn)}"
    offline.done(words, report, configure.allowance(values).exceeded(report.errors, report.rows), values)
