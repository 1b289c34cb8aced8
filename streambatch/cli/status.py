"""`streambatch status`: where a run stands, read from its directory while an engine may be writing there."""

import sys
from typing import Any

import anyio
import click

from streambatch.core.report import Status


@click.command("status")
@click.argument("run")
@click.option("--json", "as_json", is_flag=True, help="One JSON document for each look.")
@click.option("--watch", is_flag=True, help="Look again every two seconds, until no engine works on it.")
def status(run: str, as_json: bool, watch: bool) -> None:
    """Where RUN stands; RUN is a run directory or an OUTPUT."""
    if watch:
        anyio.run(_watch, run, as_json)
        return
    from streambatch import api

    _show(api.status(run), as_json)


async def _watch(run: str, as_json: bool) -> None:
    from streambatch import api

    async for look in api.watch(run):
        _show(look, as_json, redraw=sys.stdout.isatty())


def _show(look: Status, as_json: bool, redraw: bool = False) -> None:
    from streambatch import progress, reports

    if as_json:
        text: Any = reports.document(look).decode()
    else:
        text = ("\x1b[H\x1b[2J" if redraw else "") + progress.status_text(look) + "\n"
    click.echo(text, nl=False)
