"""Opening a run: lock, journal, and what must agree with an earlier visit before this one may go on.

Refuses before anything is bought; touches neither sinks nor the service.
"""

import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path

import msgspec

from streambatch.config import Config
from streambatch.core import events as e
from streambatch.core.models import InputFile, Settings
from streambatch.core.report import Progress
from streambatch.core.shaping import resolve
from streambatch.edge import files as disk
from streambatch.edge import sources
from streambatch.edge.files import Blocking, RunFiles
from streambatch.edge.journal import Journal, Store
from streambatch.engine.publishing import errors_name
from streambatch.errors import ConfigError, SourceError, StorageError


def settings_of(config: Config, inputs: Sequence[InputFile]) -> Settings:
    """Everything that the run can't change later, fixed at the first row. Raises ConfigError, SourceError."""
    first = sources.first_row(inputs, config.limits.max_line_bytes)
    shaping, emit = resolve(first, config.asked)
    return Settings(
        base_url="local" if config.local else config.service.base_url,
        organization=config.service.organization,
        project=config.service.project,
        profile=config.profile,
        shaping=shaping,
        limits=config.limits,
        emit=emit,
        column=config.asked.column,
    )


def check_first(config: Config) -> None:
    """What a new run refuses is refused before it leaves a folder behind. Raises ConfigError, SourceError."""
    settings_of(config, sources.discover(config.inputs))


def refuse_lost_journal(config: Config, files: RunFiles) -> None:
    """A run whose journal is gone or empty must not begin anew unasked: its batches would be bought again. Raises ConfigError."""
    if not files.status.is_file():
        return
    try:
        run_id = msgspec.json.decode(files.status.read_bytes(), type=Progress).run_id
    except (OSError, msgspec.DecodeError):
        run_id = ""
    if not run_id or run_id != config.run_id:
        raise ConfigError(
            f"{files.folder} holds a run whose journal is lost; give --run-id {run_id if run_id else 'ID'} to find its batches"
            " again, or name another --run-dir to start anew and pay again."
        )


def new_run_id() -> str:
    return f"sb{secrets.token_hex(6)}"


def prepare_folder(config: Config, files: RunFiles) -> None:
    """Make the run directory, and the pointer to it where it does not lie beside the output. Raises ConfigError."""
    fresh = not files.journal.exists()
    if fresh:
        _refuse_existing(config)
    files.create()
    beside = f"{config.output}.run"
    if config.output != "-" and os.path.abspath(beside) != str(files.folder) and not os.path.isdir(beside):
        disk.write_atomic(beside, f"{files.folder}\n".encode())


def _refuse_existing(config: Config) -> None:
    """A new run writes over nothing that it did not make, unless it was told to."""
    if config.output == "-" or config.if_exists == "overwrite":
        return
    for name in (config.output, errors_name(config.output, config.run_dir)):
        if os.path.exists(name):
            raise ConfigError(
                f"{name} exists and was not made by this run; use another -o, --if-exists overwrite, or --if-exists skip."
            )


# -- agreeing with an earlier visit


def agree(config: Config, started: e.Started, settings: Settings, inputs: Sequence[InputFile]) -> None:
    """Raises ConfigError where this visit's settings are not the run's."""
    if config.run_id is not None and config.run_id != started.run_id:
        raise ConfigError(
            f"{config.run_dir} holds run {started.run_id}, not {config.run_id}; leave --run-id out, or name another --run-dir."
        )
    if len(inputs) != len(started.inputs):
        raise ConfigError(
            f"This run was started with {len(started.inputs)} inputs, now {len(inputs)} are given; give the same ones."
        )
    difference = _difference(msgspec.to_builtins(started.settings), msgspec.to_builtins(settings), "")
    if difference is not None:
        name, before, now = difference
        raise ConfigError(
            f"This run was started with {name} {_shown(before)}, now it is {_shown(now)}; use the first, or start a new run with"
            " another -o."
        )


def _difference(before: object, now: object, name: str) -> tuple[str, object, object] | None:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in before:
            found = _difference(before[key], now.get(key), key)
            if found is not None:
                return found
        return None
    return None if before == now else (name, before, now)


def _shown(value: object) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 80 else f"{text[:77]}..."


async def check_inputs(
    inputs: Sequence[InputFile], known: Sequence[InputFile], journal: Journal, blocking: Blocking
) -> None:
    """Inputs that changed since they were last seen must still hold every sealed segment. Raises SourceError."""
    changed = {
        k for k, (a, b) in enumerate(zip(inputs, known, strict=True)) if (a.size, a.mtime_ns) != (b.size, b.mtime_ns)
    }
    index = 0
    while changed and (row := await journal.read(Store.segment, index)) is not None:
        touched = {s.input for s in row.segment.slices} & changed
        if touched:
            ranges = [(inputs[s.input].path, s.start, s.end) for s in row.segment.slices]
            if await blocking(_hash, ranges) != row.source_hash:
                raise _changed(inputs[min(touched)], row.segment.first_ordinal, row.segment.lines)
        index += 1


def _hash(ranges: list[tuple[str, int, int]]) -> str:
    try:
        return disk.hash_ranges(ranges)
    except StorageError as error:
        raise SourceError(str(error)) from error


def _changed(file: InputFile, first: int, lines: int) -> SourceError:
    return SourceError(
        f"{file.name} changed in rows that this run has already cut (rows {first + 1} to {first + lines} of the input);"
        " restore them, or start a new run with another -o.",
        path=file.name,
    )


# -- who has it now


def opened(config: Config, files: RunFiles, inputs: tuple[InputFile, ...]) -> e.Opened:
    """This process, on this machine."""
    return e.Opened(
        host=socket.gethostname(),
        boot_id=_boot_id(),
        inode=files.folder.stat().st_ino,
        options=msgspec.json.encode(_changeable(config)).decode(),
        inputs=inputs,
        output=config.output,
        command=config.command,
    )


def _changeable(config: Config) -> dict[str, object]:
    names = (
        "local_seed",
        "local_speed",
        "max_batches",
        "max_transfers",
        "workers",
        "max_attempts",
        "on_bad_row",
        "limit",
        "once",
    )
    return {name: getattr(config, name) for name in names}


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""
