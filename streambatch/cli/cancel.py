"""`streambatch cancel`: cancel what is in flight, keep what it finished."""

from typing import Any

import click

from streambatch.cli.flags import takes


@takes("cancel", short_help="Cancel what is in flight.")
@click.argument("run")
def cancel(run: str, **values: Any) -> None:
    """Cancel what is in flight for RUN and keep what it finished; RUN is a run directory or an OUTPUT. The run stays resumable."""
    from streambatch import api
    from streambatch.cli import visit
    from streambatch.configure import check_summary_file
    from streambatch.edge.service import LOCAL
    from streambatch.engine import inspect

    check_summary_file(values)
    folder = inspect.find_run_dir(run)
    started, opened = inspect.started(folder)
    reached = {name: value for name, value in values.items() if name in api.ServiceOptions.__annotations__}
    place = visit.Place(opened.output, folder, opened.command, started.settings.base_url == LOCAL)
    visit.visit(place, lambda listener: api.cancel(folder, on_event=listener, **reached), values, interrupted=5)
