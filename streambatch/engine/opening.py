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
from streambatch.core.agreeing import difference
from streambatch.core.models import InputFile, Settings
from streambatch.core.profiles import check_endpoint
from streambatch.core.report import Progress
from streambatch.core.shaping import resolve
from streambatch.edge import looking, sources
from streambatch.edge.files import Blocking, RunFiles
from streambatch.edge.serial import ROWS, Serials
from streambatch.engine.publishing import errors_name
from streambatch.errors import ConfigError


def inputs_of(config: Config) -> tuple[InputFile, ...]:
    """The inputs as they are now. Raises ConfigError, SourceError."""
    return sources.discover(config.inputs) if config.rows is None else (ROWS,)


async def first_row(config: Config, inputs: Sequence[InputFile], serials: Serials, blocking: Blocking) -> bytes | None:
    """The row that fixes the settings. Raises SourceError, ConfigError."""
    return await looking.first_row_of(inputs, config.limits.max_line_bytes, serials, blocking)


def stand_in(settings: Settings) -> bytes:
    """A row as good as the first one, where that one can't be had again."""
    if settings.shaping.ready_made:
        return msgspec.json.encode({"url": settings.shaping.endpoint, "body": {}})
    return b'{"messages":[]}'


def settings_of(config: Config, first: bytes | None) -> Settings:
    """Everything that the run can't change later, fixed at the first row. Raises ConfigError."""
    shaping, emit = resolve(first, config.asked)
    check_endpoint(config.profile, shaping.endpoint)
    return Settings(
        base_url="local" if config.local else config.service.base_url,
        organization=config.service.organization,
        project=config.service.project,
        profile=config.profile.name,
        dialect=config.profile.dialect,
        shaping=shaping,
        limits=config.limits,
        emit=emit,
        column=config.asked.column,
    )


async def check_first(config: Config, serials: Serials, blocking: Blocking) -> None:
    """What a new run refuses is refused before it leaves a folder behind. Raises ConfigError, SourceError."""
    inputs = await blocking(inputs_of, config)
    settings_of(config, await first_row(config, inputs, serials, blocking))


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
    """Make the run directory. Raises ConfigError."""
    if not files.has_journal():
        refuse_existing(config)
    files.create()


def refuse_existing(config: Config) -> None:
    """A new run writes over nothing that it did not make, unless it was told to. One that is known by its id may have made it:
    that shows when it has found its answers. Raises ConfigError."""
    if config.run_id is None:
        refuse_to_buy(config)


def refuse_to_buy(config: Config) -> None:
    """Nothing is bought for files that will not be written. Raises ConfigError."""
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
    for then, file in zip(started.inputs, inputs, strict=True):
        if then.kind != file.kind:
            raise ConfigError(
                f"This run was started with {_told(then)}, now {_told(file)} is given; give the first, or start a new run with"
                " another -o."
            )
    differs = difference(started.settings, settings)
    if differs is not None:
        raise ConfigError(differs)


def _told(file: InputFile) -> str:
    words = {"plain": f"{file.name} as a plain file", "gzip": f"{file.name} as a gzip file"}
    return words.get(file.kind, file.name)


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
        "max_errors",
        "on_bad_row",
        "limit",
        "once",
        "remote_files",
        "max_spool_bytes",
        "keep_spool",
        "adopt_grace_s",
    )
    of_profile = {"key_env": config.profile.key_env, "key_header": config.profile.key_header}
    return {name: msgspec.to_builtins(getattr(config, name)) for name in names} | of_profile


def _boot_id() -> str:
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text(encoding="ascii").strip() if path.exists() else ""
