"""Options -> Config: what was given, the service's own variables and the defaults, composed and checked once.

Where the service is, and its key, is `access`'s to say. Sends nothing and makes nothing on disk.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from streambatch import access
from streambatch.access import Values, read_text
from streambatch.config import Config, ErrorAllowance
from streambatch.core.events import Opened, Started
from streambatch.core.models import Settings, ShardLimits
from streambatch.core.profiles import OPENAI, PROFILES, Profile
from streambatch.core.shaping import Asked
from streambatch.edge.profiles import read_profile
from streambatch.edge.service import LOCAL, Service
from streambatch.edge.sources import text_path
from streambatch.errors import ConfigError

if TYPE_CHECKING:  # it brings an event loop along
    from streambatch.edge.feeds import Rows

LOCAL_PROFILES = ("openai", "openai-2024", "azure", "together", "groq")  # what the embedded server can be like
MOST_LABELS = 8
GRACE_S, LOCAL_GRACE_S = 120.0, 1.0


def configure(
    inputs: Sequence[str],
    values: Values,
    environ: Mapping[str, str],
    command: str,
    given: Service | None = None,
    rows: "Rows | None" = None,
) -> Config:
    """One visit to one run, from parsed options; `given` is a service made by hand, and with `rows` of a program there are no
    `inputs`. Raises ConfigError."""
    output, run_id = _output(values, inputs, rows), _run_id(values)
    check_summary_file(values)
    check_spool(values)
    local = values.get("local", False)
    as_given = {name: values[name] for name in _AS_GIVEN if name in values}
    return Config(
        inputs=tuple(inputs),
        rows=rows,
        output=output,
        run_dir=_run_dir(output, run_id, values),
        run_id=run_id,
        service=access.chosen(values, environ, given, profile(values)),
        command=command,
        asked=asked(values),
        limits=limits(values),
        local=local,
        local_speed=values.get("speed", 10.0),
        local_seed=values.get("seed", 0),
        profile=_profile(values, local=local),
        workers=workers(values),
        poll_interval_s=values.get("poll_interval"),
        max_errors=allowance(values),
        adopt_grace_s=values.get("adopt_grace", LOCAL_GRACE_S if local else GRACE_S),
        pause_on_errors=values.get("pause_on_errors", 50.0),
        stuck_after_s=values.get("stuck_after", 7200.0),
        remote_files=_remote_files(values),
        stop_after_s=values.get("stop_after"),
        labels=_labels(values),
        **as_given,
    )


_AS_GIVEN = (
    "max_batches",
    "max_transfers",
    "max_attempts",
    "on_bad_row",
    "once",
    "limit",
    "if_exists",
    "max_spool_bytes",
    "keep_spool",
    "accept_gone",
)


def resume(
    started: Started,
    opened: Opened,
    run_dir: str,
    values: Values,
    environ: Mapping[str, str],
    given: Service | None = None,
) -> Config:
    """The Config by which another command goes on with a run, from its journal. Raises ConfigError."""
    settings = started.settings
    shaping = settings.shaping
    local = settings.base_url == LOCAL
    profile = _profile_of(settings, opened)
    known = {"local": True} if local else {} if given else {"base_url": settings.base_url}
    return Config(
        inputs=tuple(file.path for file in started.inputs),
        output=opened.output,
        run_dir=run_dir,
        run_id=started.run_id,
        service=access.chosen({**values, **known}, environ, given, profile),
        command=opened.command,
        asked=Asked(
            endpoint=shaping.endpoint,
            model=shaping.model,
            system=shaping.system,
            prompt=shaping.prompt,
            params=shaping.params,
            id_field=shaping.id_field,
            null=shaping.null,
            emit=settings.emit,
            column=settings.column,
        ),
        limits=settings.limits,
        local=local,
        **{"adopt_grace_s": LOCAL_GRACE_S if local else GRACE_S} | _embedded(opened),
        profile=profile,
        workers=workers(values),
        poll_interval_s=values.get("poll_interval"),
    )


def _embedded(opened: Opened) -> dict[str, Any]:
    """The embedded server's pace and seed, and what becomes of rows and of files here and there, as the last visit had them."""
    options: dict[str, Any] = msgspec.json.decode(opened.options)
    known = {name: options[name] for name in _REMEMBERED if name in options}
    if "max_errors" in options:
        known["max_errors"] = msgspec.convert(options["max_errors"], ErrorAllowance)
    return known


_REMEMBERED = (
    "local_seed",
    "local_speed",
    "remote_files",
    "max_attempts",
    "max_spool_bytes",
    "keep_spool",
    "adopt_grace_s",
)


# -- policies that other commands share


def asked(values: Values) -> Asked:
    """How rows become requests, as far as the user said."""
    named = {
        "endpoint": "endpoint",
        "model": "model",
        "system": "system",
        "id_field": "id",
        "null": "null",
        "column": "column",
    }
    given = {field: values[name] for field, name in named.items() if name in values}
    return Asked(prompt=_prompt(values), params=values.get("param", ()), emit=values.get("emit"), **given)


def _prompt(values: Values) -> str | None:
    path = values.get("prompt_file")
    if path is None:
        return values.get("prompt")
    if "prompt" in values:
        raise ConfigError("Both prompt and prompt_file are given; leave one out.")
    return read_text(path, "The prompt file").removesuffix("\n")


def limits(values: Values) -> ShardLimits:
    """The limits of a batch: the profile's, or what the user set below them; never more requests than we promise to manage."""
    known = profile(values)
    most = {"max_requests": min(known.max_requests, ShardLimits().max_requests), "max_bytes": known.max_bytes}
    for name, bound in most.items():
        if values.get(name, 0) > bound:
            raise ConfigError(f"{name} {values[name]} is more than the {bound} that the service takes in one batch.")
    given = {name: values[name] for name in ("max_requests", "max_bytes", "max_line_bytes") if name in values}
    return ShardLimits(**(most | given))


def profile(values: Values) -> Profile:
    """The service's limits and dialect. Raises ConfigError."""
    return read_profile(str(values.get("profile", OPENAI.name)))


def _profile(values: Values, *, local: bool) -> Profile:
    known = profile(values)
    if local and known.name not in LOCAL_PROFILES:
        raise ConfigError(
            f"The embedded server can't be like the profile {values['profile']}; with --local it is one of"
            f" {', '.join(LOCAL_PROFILES)}."
        )
    return known


def _profile_of(settings: Settings, opened: Opened) -> Profile:
    """The profile of a run that has begun, as its journal has it."""
    options: dict[str, Any] = msgspec.json.decode(opened.options)
    told = {name: options[name] for name in ("key_env", "key_header") if name in options}
    known = PROFILES.get(settings.profile, Profile())
    return msgspec.structs.replace(known, name=settings.profile, dialect=settings.dialect, **told)


def workers(values: Values) -> int:
    """Worker processes: as given, else two, or one where there is one core."""
    return int(values.get("workers", min(os.cpu_count() or 1, 2)))


def allowance(values: Values) -> ErrorAllowance:
    """How many row errors are fine."""
    rows, percent = values.get("max_errors", (0, None))
    return ErrorAllowance(rows, percent)


def _remote_files(values: Values) -> str:
    """What becomes of files at the service. Raises ConfigError for an expiry that it does not offer."""
    asked = str(values.get("remote_files", "inputs"))
    word, _, seconds = asked.partition(":")
    if word != "expire":
        return asked
    known = profile(values)
    if known.expiry_s is None:
        raise ConfigError(
            f"Files can't be made to expire at the service of the profile {known.name}, as far as is known; use --remote-files"
            " inputs, keep or delete."
        )
    least, most = known.expiry_s
    if not least <= int(seconds) <= most:
        raise ConfigError(f"--remote-files {asked}: the service keeps files from {least} to {most} seconds.")
    return asked


def check_spool(values: Values) -> None:
    """Raises ConfigError where the spool is to be bounded and to be kept."""
    if values.get("keep_spool") and "max_spool_bytes" in values:
        raise ConfigError(
            "keep_spool, which stream() needs too, keeps the files that max_spool_bytes would bound; leave one out."
        )


# -- the run


def _output(values: Values, inputs: Sequence[str], rows: "Rows | None") -> str:
    given: str | None = values.get("output")
    if given is None:
        raise ConfigError("No output is named; say where the answers go with -o OUTPUT.")
    if not inputs and rows is None:
        raise ConfigError("No input is named; give at least one JSONL file.")
    if given == "-":
        if "run_dir" not in values:
            raise ConfigError("With -o - the run needs a place for its state; name one with --run-dir.")
        return "-"
    check_folder(given, "output")
    path = text_path(given, "output")
    if any(os.path.realpath(path) == os.path.realpath(name) for name in inputs):
        raise ConfigError(f"The output {given} is also an input; name another file.")
    return path


def check_summary_file(values: Values) -> None:
    """`check_folder` of the summary file."""
    check_folder(values.get("summary_file"), "summary file")


def check_folder(path: str | None, what: str) -> None:
    """Refuse at once a file that could not be written at the end. Raises ConfigError."""
    if path is not None and (os.path.isdir(path) or not os.path.isdir(os.path.dirname(os.path.abspath(path)))):
        why = "is a folder" if os.path.isdir(path) else "lies in a folder that does not exist"
        raise ConfigError(f"The {what} {path} {why}; name a file.")


def _run_dir(output: str, run_id: str | None, values: Values) -> str:
    from streambatch.edge import pointers  # brings an event loop along

    return pointers.run_dir(output, values.get("run_dir"), run_id, values.get("if_exists", "fail"))


def _run_id(values: Values) -> str | None:
    run_id = values.get("run_id")
    if run_id is not None and not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", run_id):
        raise ConfigError(f"The run id {run_id!r} must be 1 to 40 letters, digits, - or _.")
    return run_id


def _labels(values: Values) -> tuple[tuple[str, str], ...]:
    labels: tuple[tuple[str, str], ...] = values.get("label", ())
    if len(labels) > MOST_LABELS:
        raise ConfigError(f"{len(labels)} labels are given; a batch has room for {MOST_LABELS}.")
    for name, text in labels:
        if name.startswith("streambatch") or len(name) > 64 or len(text) > 512:
            raise ConfigError(
                f"The label {name[:64]!r} must not begin with streambatch, nor be longer than 64 (name) or 512 (value)."
            )
    return labels
