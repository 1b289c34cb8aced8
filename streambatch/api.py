"""The library: arguments -> Config -> engine, for a running event loop; the `*_sync` twins bring their own.

No client object and no global state; what goes wrong is raised as one of `streambatch.errors`.
"""

import contextlib
import os
import pathlib
import random
import tempfile
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

import anyio
import msgspec

from streambatch import checking, endings
from streambatch.access import check_local
from streambatch.config import Config, Mode
from streambatch.configure import asked, configure, limits, resume
from streambatch.configure import profile as profile_of
from streambatch.core.checks import Check, Checks
from streambatch.core.events import Opened
from streambatch.core.profiles import OPENAI
from streambatch.core.report import Progress, Status, Summary
from streambatch.core.retry import RetryPolicy
from streambatch.edge.clock import SystemClock
from streambatch.edge.feeds import Rows, split_source
from streambatch.edge.files import RunFiles, write_atomic
from streambatch.edge.locking import is_locked
from streambatch.edge.retrying import RetryingApi
from streambatch.edge.service import Service
from streambatch.engine import Listener, inspect
from streambatch.engine import run as run_engine
from streambatch.errors import ApiError, StreambatchError
from streambatch.options import parse_all, read_job
from streambatch.outcome import Outcome, is_result, of_result, of_row
from streambatch.previewing import preview as look_ahead
from streambatch.previewing import preview_async
from streambatch.reports import tell
from streambatch.syncing import need_asyncio, own_loop

if TYPE_CHECKING:
    from streambatch.edge.client import BatchApi

Path = str | os.PathLike[str]
Source = Path | Sequence[Path] | Rows
Size = int | str  # bytes, or "200MB"
Duration = float | str  # seconds, or "6h"
LOOK_EVERY_S = 0.2
KNOCK_S = 8.0
Named = Mapping[str, Any] | Sequence[str]  # {"temperature": 0.2}, or ["temperature=0.2"]


class ShapeOptions(TypedDict, total=False):
    """How rows become requests: the options of `preview`."""

    job: Path
    profile: str
    endpoint: str
    model: str
    system: str
    prompt_file: Path
    param: Named
    id: str
    null: Literal["error", "empty", "skip"]
    max_line_bytes: Size


class ReachOptions(TypedDict, total=False):
    """How to reach the service."""

    api_key_env: str
    api_key_file: Path
    header: Named
    ca_bundle: Path
    allow_http: bool


class ServiceOptions(ReachOptions, total=False):
    """The options of `cancel`."""

    poll_interval: Duration


class CheckOptions(ReachOptions, total=False):
    """The options of `check`."""

    job: Path
    profile: str
    base_url: str
    local: bool
    model: str


class RunOptions(ShapeOptions, ServiceOptions, total=False):
    """All options of `run`, by the names that flags, variables and job files use."""

    run_dir: Path
    run_id: str
    label: Named
    base_url: str
    local: bool
    speed: float
    seed: int
    emit: Literal["results", "rows"]
    column: str
    max_requests: int
    max_bytes: Size
    max_batches: int
    max_transfers: int
    workers: int
    limit: int
    remote_files: str
    max_spool_bytes: Size
    keep_spool: bool
    adopt_grace: Duration
    stuck_after: Duration
    accept_gone: Literal["error", "rebuy"]
    once: bool
    stop_after: Duration
    max_attempts: int
    on_bad_row: Literal["skip", "stop"]
    max_errors: int | str
    pause_on_errors: str
    if_exists: Literal["fail", "skip", "overwrite"]
    summary_file: Path


async def run(
    source: Source,
    output: Path,
    *,
    prompt: str | None = None,
    service: Service | None = None,
    on_event: Listener | None = None,
    **options: Unpack[RunOptions],
) -> Summary:
    """Run JSONL input through a batch API into `output`, or go on with that run; the same call again resumes.

    `source` is a path, several, or rows: any iterable or async iterable of mappings (or of lines of JSON). Rows can't be read
    twice, so to resume they must be given again, from the first on; those that the run has are compared.

    `on_event` hears each event of the journal and looks at the progress, in the event loop. A visit that ends early without
    an error (paused, in flight) returns a summary whose `exit_code` says so. Raises ConfigError, SourceError, ApiError,
    JournalError or StorageError.
    """
    need_asyncio("run_sync")
    values = values_of({**options, "prompt": prompt, "output": output})
    config = config_of(source, values, service)
    try:
        summary = await run_engine(config, connect, on_event)
    except StreambatchError as error:
        tell(endings.of_error(error, config.output, config.run_dir, config.command), values)
        raise
    tell(summary, values)
    return summary


async def preview(
    source: Source, n: int = 3, *, prompt: str | None = None, **options: Unpack[ShapeOptions]
) -> list[bytes]:
    """The first `n` requests exactly as `run` would send them, newline included; rows that can't be sent are left out.

    Of an iterator it takes rows away. Raises ConfigError, SourceError.
    """
    if isinstance(source, AsyncIterable):
        values = values_of({**options, "prompt": prompt})
        seen = await preview_async(source, asked(values), limits(values), n, profile=profile_of(values))
        return list(seen.requests)
    return await anyio.to_thread.run_sync(partial(preview_sync, source, n, prompt=prompt, **options))


def preview_sync(
    source: Source, n: int = 3, *, prompt: str | None = None, **options: Unpack[ShapeOptions]
) -> list[bytes]:
    """`preview` without an event loop."""
    if isinstance(source, AsyncIterable):  # only a loop can read it
        return own_loop(partial(preview, source, n, prompt=prompt, **options))
    values = values_of({**options, "prompt": prompt})
    inputs, rows = split_source(source)
    return list(look_ahead(inputs, asked(values), limits(values), n, rows, profile=profile_of(values)).requests)


def values_of(given: Mapping[str, object]) -> dict[str, Any]:
    """Options in their plain form, a job file's below them; None stands for not given. Raises ConfigError."""
    values = parse_all(given)
    return {**read_job(values["job"]), **values} if "job" in values else values


def config_of(source: Source, values: Mapping[str, Any], service: Service | None, call: str = "run()") -> Config:
    """The Config of a call of the library. Raises ConfigError."""
    inputs, rows = split_source(source)
    return configure(inputs, values, os.environ, f"call {call} again with the same arguments", service, rows)


@contextlib.asynccontextmanager
async def connect(config: Config) -> AsyncIterator["BatchApi"]:
    """The service of a run, behind the retrying client; with `local`, its embedded server is started first."""
    from streambatch.edge.client import HttpBatchApi  # brings aiohttp

    async with _service(config) as service:
        http = HttpBatchApi(service, config.profile.dialect, expire_s=config.expire_s)
        api = RetryingApi(http, config.retry, SystemClock(), random.random)
        try:
            if not config.local:
                await _knock(http, config.retry)
            yield api
        finally:
            with anyio.CancelScope(shield=True):
                await api.aclose()


async def _knock(http: "BatchApi", policy: RetryPolicy) -> None:
    """Who can't be reached at all is not waited for as long as one who was there before. Raises ApiError, ConfigError."""
    short = msgspec.structs.replace(policy, max_elapsed_s=min(policy.max_elapsed_s, KNOCK_S), min_attempts=1)
    try:
        await RetryingApi(http, short, SystemClock(), random.random).list_batches(None, 1)
    except ApiError as error:
        if error.status is None or not error.retryable:
            raise


@contextlib.asynccontextmanager
async def _service(config: Config) -> AsyncIterator[Service]:
    if not config.local:
        yield config.service
        return
    folder = pathlib.Path(config.run_dir, "local")
    async with _embedded(folder, config.local_seed, config.local_speed, config.profile.name) as service:
        yield msgspec.structs.replace(service, key_header=config.profile.key_header)


@contextlib.asynccontextmanager
async def _embedded(
    folder: pathlib.Path, seed: int = 0, speed: float = 10.0, profile: str = OPENAI.name
) -> AsyncIterator[Service]:
    """The embedded server, with its state in `folder`."""
    from streambatch.server.serving import ThreadedServer
    from streambatch.server.settings import Settings

    server = ThreadedServer(Settings(data_dir=folder, seed=seed, speed=speed, profile=profile))
    await anyio.to_thread.run_sync(server.start)
    try:
        yield Service(base_url=server.url, api_key=server.api_key)
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(server.stop)


# -- looking at runs


def status(run: Path) -> Status:
    """Where a run stands; `run` is a run directory or an output. Raises ConfigError, JournalError."""
    return inspect.status(os.fspath(run))


def peek(run: Path, n: int = 5) -> list[Outcome]:
    """Up to `n` outcomes that are already here, before the run is done. Raises ConfigError, JournalError."""
    started, _ = inspect.started(os.fspath(run))
    settings = started.settings
    return [
        of_result(line, settings.shaping.endpoint) if is_result(line) else of_row(line, settings.column)
        for line in inspect.peek(os.fspath(run), n)
    ]


async def watch(run: Path, every_s: float = 2.0) -> AsyncIterator[Status]:
    """The run's status now and every `every_s` seconds, until no engine works on it."""
    while True:
        look = await anyio.to_thread.run_sync(status, run)
        yield look
        if not look.running:
            return
        await anyio.sleep(every_s)


async def cancel(
    run: Path, *, service: Service | None = None, on_event: Listener | None = None, **options: Unpack[ServiceOptions]
) -> Summary:
    """Cancel what is in flight and keep what it finished; the run stays resumable. A running engine is asked to do it.

    Raises ConfigError, ApiError, JournalError or StorageError.
    """
    need_asyncio("cancel_sync")
    folder = inspect.find_run_dir(os.fspath(run))
    started, opened = inspect.started(folder)
    summary = await _asked(folder, opened) if is_locked(folder) else None
    if summary is None:
        config = resume(started, opened, folder, parse_all(options), os.environ, service)
        summary = await run_engine(config, connect, on_event, mode=Mode.CANCEL)
    return msgspec.structs.replace(summary, exit_code=0) if summary.state in ("cancelled", "finished") else summary


async def _asked(folder: str, opened: Opened) -> Summary | None:
    """Ask the engine that has the run; the summary once it left, or None where it left without having cancelled."""
    request = RunFiles(folder).cancel
    await anyio.to_thread.run_sync(write_atomic, request, b"")
    while is_locked(folder):  # noqa: ASYNC110  another process holds it: there is nothing to wait on
        await anyio.sleep(LOOK_EVERY_S)
    with contextlib.suppress(FileNotFoundError):  # the engine took it
        await anyio.Path(request).unlink()
    message = "The run was cancelled; rows that had finished are kept."
    summary = endings.as_far_as_known("cancelled", 0, message, opened.output, folder, opened.command)
    return summary if summary.in_flight == 0 else None


# -- looking at the service


async def check(*, service: Service | None = None, **options: Unpack[CheckOptions]) -> Checks:
    """What works from here: address, proxy, certificate, key, batches, files, model, clock. Sends no rows, costs nothing.

    What is wrong comes back as a failed `Check` with a sentence on what to do. Raises ConfigError for an option that is none.
    """
    need_asyncio("check_sync")
    values = values_of(options)
    if not values.get("local"):
        return await checking.check(values, os.environ, service)
    check_local(values, service)
    profile = profile_of(values)
    with tempfile.TemporaryDirectory(prefix="streambatch-check-") as scratch:
        async with _embedded(pathlib.Path(scratch), profile=profile.name) as embedded:
            own = msgspec.structs.replace(embedded, key_header=profile.key_header)
            return await checking.look(checking.embedded(own))


# -- twins with a loop of their own


def run_sync(
    source: Source,
    output: Path,
    *,
    prompt: str | None = None,
    service: Service | None = None,
    on_event: Listener | None = None,
    **options: Unpack[RunOptions],
) -> Summary:
    """`run` without an event loop; inside a running one (a notebook) it works in a thread of its own."""
    return own_loop(partial(run, source, output, prompt=prompt, service=service, on_event=on_event, **options))


def cancel_sync(
    run: Path, *, service: Service | None = None, on_event: Listener | None = None, **options: Unpack[ServiceOptions]
) -> Summary:
    """`cancel` without an event loop."""
    return own_loop(partial(cancel, run, service=service, on_event=on_event, **options))


def check_sync(*, service: Service | None = None, **options: Unpack[CheckOptions]) -> Checks:
    """`check` without an event loop."""
    return own_loop(partial(check, service=service, **options))


def watch_sync(run: Path, every_s: float = 2.0) -> Iterator[Status]:
    """`watch` without an event loop: a plain iterator."""
    while True:
        look = status(run)
        yield look
        if not look.running:
            return
        time.sleep(every_s)


__all__ = [
    "Check",
    "CheckOptions",
    "Checks",
    "Outcome",
    "Progress",
    "RunOptions",
    "Service",
    "ServiceOptions",
    "ShapeOptions",
    "Status",
    "Summary",
    "cancel",
    "cancel_sync",
    "check",
    "check_sync",
    "connect",
    "peek",
    "preview",
    "preview_sync",
    "run",
    "run_sync",
    "status",
    "watch",
    "watch_sync",
]
