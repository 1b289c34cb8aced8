"""The engine of the `merge` command: result files joined with inputs by custom_id, in the order of the input.

Result files whose rows lie together (one per batch, the usual case) are joined one by one in memory; whatever is not that simple
goes through disk beside OUTPUT. Blocking, bounded memory, without an event loop.
"""

import os
from collections.abc import Callable, Sequence

from streambatch.core.joins import Form, RowNames
from streambatch.core.models import ShardLimits
from streambatch.core.replies import object_keys
from streambatch.edge import looking, sources
from streambatch.edge.diskjoin import join_on_disk
from streambatch.edge.fastjoin import join_slices
from streambatch.edge.hands import Hands
from streambatch.edge.jobs import storage_error
from streambatch.edge.joinfiles import Workplace, result_spans, row_spans
from streambatch.edge.jointask import JoinReport, Task
from streambatch.errors import ConfigError

SMALL_BYTES = 8 << 20  # less than this is joined without worker processes


def join(
    inputs: Sequence[str],
    results: Sequence[str],
    output: str,
    *,
    workers: int = 2,
    if_exists: str = "fail",
    id_field: str | None = None,
    emit: str | None = None,
    column: str = "answer",
    endpoint: str = "/v1/chat/completions",
    on_progress: Callable[[int, int], None] | None = None,
) -> JoinReport:
    """Writes OUTPUT, and OUTPUT.errors if a row has no success; neither appears before it is complete.

    Without `emit` ready-made requests give `results`, plain rows `rows`.

    Raises ConfigError, SourceError for a file that can't be read, StorageError. `on_progress` is told (jobs done, jobs in all).
    """
    names = _names(inputs, id_field)
    form = Form(emit if emit is not None else "results" if names.ready_made else "rows", column, endpoint)
    task = Task(row_spans(inputs), result_spans(results), names, form)
    output = os.path.abspath(output)
    if not _free(output, task, if_exists):
        return JoinReport(existed=True)
    small = sum(span.end - span.start for span in (*task.inputs, *task.results)) < SMALL_BYTES
    try:
        with Workplace(output) as place, Hands(1 if small else workers) as hands:
            return _join(task, place, hands, on_progress)
    except OSError as error:
        raise storage_error(error) from error


def _join(task: Task, place: Workplace, hands: Hands, on_progress: Callable[[int, int], None] | None) -> JoinReport:
    simple = task.form.emit == "results" and not task.names.by_ordinal
    tally = join_slices(task, place, hands, on_progress) if simple else None
    if tally is None:
        place.clear()
        tally = join_on_disk(task, place, hands, on_progress)
    return tally.report(*place.publish())


def _names(inputs: Sequence[str], id_field: str | None) -> RowNames:
    """Rows with `body` and `url` are ready-made: the first object says it for all."""
    row = looking.first_row(sources.discover_plain(inputs, "merge"), ShardLimits().max_line_bytes)
    keys = None if row is None else object_keys(row)
    ready_made = keys is not None and {"body", "url"} <= keys
    return RowNames(ready_made, None if ready_made else id_field)


def _free(output: str, task: Task, if_exists: str) -> bool:
    """Whether to go on: OUTPUT is not there, or may be replaced. Raises ConfigError."""
    taken = {os.path.realpath(span.path) for span in (*task.inputs, *task.results)}
    for path in (output, f"{output}.errors"):
        if os.path.realpath(path) in taken:
            raise ConfigError(f"{path} would be overwritten, but it is read: choose another --output.")
    old = [path for path in (output, f"{output}.errors") if os.path.lexists(path)]
    if not old or if_exists == "overwrite":
        return True
    if if_exists == "skip" and output in old:
        return False
    raise ConfigError(f"{old[0]} exists: choose another --output, or --if-exists overwrite or skip.")
