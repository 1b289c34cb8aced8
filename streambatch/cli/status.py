"""`streambatch status`: where a run stands, read from its directory while an engine may be writing there."""

import sys

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

    if not as_json and sys.stdout.isatty():
        await _watch_in_place(run)
        return
    async for look in api.watch(run):
        _show(look, as_json)


async def _watch_in_place(run: str) -> None:
    """One look over the other; the last one is left standing."""
    from rich.live import Live
    from rich.text import Text

    from streambatch import api, progress

    with Live(auto_refresh=False) as display:
        async for look in api.watch(run):
            display.update(Text(progress.status_text(look)), refresh=True)


def _show(look: Status, as_json: bool) -> None:
    from streambatch import progress, reports

    reports.put_out(
        reports.document(look) if as_json else f"{progress.status_text(look)}\n".encode(errors="surrogateescape")
    )
