"""The options of every command, declared once: the flags, the environment, the job file and the library all read this table.

Knows names, kinds and how a value is written; not what any of them does. Imports nothing heavy: `--help` goes through here.
"""

import json
import re
from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any, NamedTuple

from streambatch.errors import ConfigError


class Kind(Enum):
    """How a value is written, in a flag, a variable, a job file or a keyword."""

    TEXT = "TEXT"
    PATH = "PATH"
    FLAG = ""
    CHOICE = "CHOICE"
    COUNT = "N"
    NUMBER = "X"
    SIZE = "SIZE"
    DURATION = "TIME"
    ALLOWANCE = "N|P%"
    PERCENT = "P%"
    REMOTE = "inputs|keep|delete|expire:TIME"
    PARAM = "NAME=JSON"
    LABEL = "K=V"
    HEADER = "NAME=env:VAR"


class Option(NamedTuple):
    """One option. `default` is what a reader is told; `on` names the commands that take it; `least` bounds a count or a time."""

    name: str
    kind: Kind
    help: str
    default: str = "none"
    on: str = "run"
    choices: tuple[str, ...] = ()
    least: float = 0
    short: str = ""
    terminal: bool = False  # about the terminal: no keyword of the library

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "STREAMBATCH_" + self.name.upper()

    @property
    def many(self) -> bool:
        return self.kind in (Kind.PARAM, Kind.LABEL, Kind.HEADER)


_SHAPING = "run preview shard"
_SERVED = "run preview shard check"
_REACH = "run cancel check purge"
_REPORT = "run shard merge"
_SHOWN = "run cancel shard merge"

OPTIONS: tuple[Option, ...] = (
    Option("output", Kind.PATH, "Where the answers go; - is stdout, for run.", "required", _REPORT, short="-o"),
    Option("job", Kind.PATH, "A TOML file with any of these names as keys.", on="run preview shard merge check"),
    # -- the run
    Option("run_dir", Kind.PATH, "Where the run's state lives.", "OUTPUT.run"),
    Option("run_id", Kind.TEXT, "The run's name in the batches' metadata.", "random"),
    Option("label", Kind.LABEL, "Kept in the journal and the batches' metadata; at most 8."),
    # -- the service
    Option("base_url", Kind.TEXT, "The service.", "OPENAI_BASE_URL, else the profile's", "run check"),
    Option("api_key_env", Kind.TEXT, "The variable that holds the key.", "the profile's", _REACH),
    Option(
        "api_key_file",
        Kind.PATH,
        "A file that holds the key; read again when the service answers 401.",
        on=_REACH,
    ),
    Option("header", Kind.HEADER, "One more header, its value from a variable.", on=_REACH),
    Option("ca_bundle", Kind.PATH, "Certificates to trust.", "the system's", on=_REACH),
    Option("allow_http", Kind.FLAG, "Allow clear-text HTTP off this machine.", "off", on=_REACH),
    Option("profile", Kind.TEXT, "A service by name, or a FILE.toml: its limits and dialect.", "openai", _SERVED),
    Option(
        "local",
        Kind.FLAG,
        "Use the embedded server, with its state in the run directory; needs no key.",
        "off",
        "run check",
    ),
    Option("speed", Kind.NUMBER, "With --local: divides the service's durations.", "10"),
    Option("seed", Kind.COUNT, "With --local: of the answers.", "0"),
    # -- rows to requests
    Option("endpoint", Kind.TEXT, "What every request asks for.", "/v1/chat/completions", "run preview shard merge"),
    Option("model", Kind.TEXT, "The model of plain rows.", on=_SERVED),
    Option("system", Kind.TEXT, "A system message, with {{ field }}.", on=_SHAPING),
    Option("prompt", Kind.TEXT, "The user's message, with {{ field }}.", on=_SHAPING),
    Option("prompt_file", Kind.PATH, "A file that holds the prompt.", on=_SHAPING),
    Option("param", Kind.PARAM, "One more field of the body.", on=_SHAPING),
    Option("id", Kind.TEXT, "The field that names a row.", "the row's ordinal", "run preview shard merge"),
    Option("null", Kind.CHOICE, "A null in a field of the prompt.", "error", _SHAPING, ("error", "empty", "skip")),
    Option(
        "emit", Kind.CHOICE, "Result lines, or rows with an answer.", "by the rows", "run merge", ("results", "rows")
    ),
    Option("column", Kind.TEXT, "With rows: the answer's field.", "answer", "run merge"),
    # -- limits
    Option("max_requests", Kind.COUNT, "Requests in a batch.", "the profile's; 50000", "run shard", least=1),
    Option("max_bytes", Kind.SIZE, "Bytes in a batch.", "the profile's; 209715200", "run shard", least=1),
    Option("max_line_bytes", Kind.SIZE, "The longest line read.", "32MiB", "run preview shard", least=1),
    Option("max_batches", Kind.COUNT, "Batches at once.", "64", least=1),
    Option("max_transfers", Kind.COUNT, "Uploads and downloads at once.", "4", least=1),
    Option("workers", Kind.COUNT, "Processes for the heavy work; 0: none.", "min(cores, 2)", _REPORT),
    Option("limit", Kind.COUNT, "Only the first N rows.", "all", "run shard"),
    Option(
        "remote_files",
        Kind.REMOTE,
        "Files at the service: delete inputs once merged, keep all, delete all once merged, or let them expire.",
        "inputs",
    ),
    Option(
        "max_spool_bytes", Kind.SIZE, "Bytes in the spool; the next segment in turn may be above.", "no bound", least=1
    ),
    Option("keep_spool", Kind.FLAG, "Keep the files of rows that are merged.", "off"),
    # -- time
    Option(
        "poll_interval",
        Kind.DURATION,
        "Between two looks at the batches.",
        "adaptive, 5 s to 60 s",
        "run cancel",
        least=0.01,
    ),
    Option("adopt_grace", Kind.DURATION, "How long a batch may take to show in the list.", "120 s; 1 s with --local"),
    Option("stuck_after", Kind.DURATION, "Give up a batch that is so long past its end, or does not cancel.", "2h"),
    Option("once", Kind.FLAG, "Do what can be done now, then leave.", "off"),
    Option("stop_after", Kind.DURATION, "Like --once at that time.", "off"),
    # -- errors
    Option("max_attempts", Kind.COUNT, "How often a row may be tried.", "3", least=1),
    Option("on_bad_row", Kind.CHOICE, "A row that can't be sent.", "skip", "run", ("skip", "stop")),
    Option("max_errors", Kind.ALLOWANCE, "More row errors than this make exit code 6.", "0", _REPORT),
    Option(
        "pause_on_errors",
        Kind.PERCENT,
        "Stop buying when, after 1,000 outcomes, more of them are errors; 100%: never.",
        "50%",
    ),
    Option(
        "accept_gone",
        Kind.CHOICE,
        "Paid work that can't be found: its rows become errors, or are bought again.",
        "none: pause",
        "run",
        ("error", "rebuy"),
    ),
    Option("if_exists", Kind.CHOICE, "An existing output.", "fail", _REPORT, ("fail", "skip", "overwrite")),
    # -- what is shown
    Option("summary_file", Kind.PATH, "The summary as JSON, also on failure.", on=_SHOWN),
    Option("log_format", Kind.CHOICE, "Progress on stderr.", "text", "run cancel", ("text", "json"), terminal=True),
    Option(
        "json", Kind.FLAG, "The summary as JSON on stdout.", "off", "run cancel shard merge check purge", terminal=True
    ),
    Option("quiet", Kind.FLAG, "No progress.", "off", _SHOWN, terminal=True),
    Option("yes", Kind.FLAG, "Never ask.", "off", "run purge", terminal=True),
)
BY_NAME = {option.name: option for option in OPTIONS}


def of_command(command: str) -> list[Option]:
    """The options that a command takes, in the order of the table."""
    return [option for option in OPTIONS if command in option.on.split()]


# -- values


def parse(option: Option, value: object, label: str) -> Any:
    """A value in its plain form: str, bool, int, float, (rows, percent), or pairs. Raises ConfigError that names `label`."""
    try:
        return _PARSERS[option.kind](option, value)
    except _ValueFaultError as wrong:
        raise ConfigError(f"{label}: {wrong}.") from wrong


class _ValueFaultError(Exception):
    """What is wrong with a value, in words that follow its name."""


def _text(option: Option, value: object) -> str:
    if not isinstance(value, str):
        raise _ValueFaultError(f"{value!r} is no text")
    return value


def _path(option: Option, value: object) -> str:
    path = value.__fspath__() if hasattr(value, "__fspath__") else value
    if not isinstance(path, str) or not path or "\0" in path:
        raise _ValueFaultError(f"{value!r} is no path")
    return path


def _flag(option: Option, value: object) -> bool:
    words = {
        "1": True,
        "true": True,
        "yes": True,
        "on": True,
        "0": False,
        "false": False,
        "no": False,
        "off": False,
        "": False,
    }
    known = words.get(value.strip().lower()) if isinstance(value, str) else value
    if not isinstance(known, bool):
        raise _ValueFaultError(f"{value!r} is neither true nor false")
    return known


def _choice(option: Option, value: object) -> str:
    if value not in option.choices:
        raise _ValueFaultError(f"{value!r} is none of {', '.join(option.choices)}")
    return str(value)


def _count(option: Option, value: object) -> int:
    number = int(value) if isinstance(value, str) and re.fullmatch(r"\d{1,15}", value) else value
    if isinstance(number, bool) or not isinstance(number, int) or number < option.least:
        raise _ValueFaultError(f"{value!r} is no whole number of {option.least} or more")
    return number


_DECIMAL = r"\d{1,9}(\.\d{0,9})?|\.\d{1,9}"


def _number(option: Option, value: object) -> float:
    known = float(value) if isinstance(value, str) and re.fullmatch(_DECIMAL, value) else value
    if isinstance(known, bool) or not isinstance(known, int | float) or not 0 < known < 1e9:
        raise _ValueFaultError(f"{value!r} is no number above 0")
    return float(known)


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}


def _size(option: Option, value: object) -> int:
    match = re.fullmatch(r"(\d{1,15})\s*([a-z]*)", value.strip().lower()) if isinstance(value, str) else None
    size = int(match[1]) * _UNITS[match[2]] if match and match[2] in _UNITS else value
    if isinstance(size, bool) or not isinstance(size, int) or size < option.least:
        raise _ValueFaultError(f"{value!r} is no size; write a number of bytes, or 200MB, or 64MiB")
    return size


_SPANS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _duration(option: Option, value: object) -> float:
    known = _seconds(value.replace(" ", "")) if isinstance(value, str) else value
    if isinstance(known, bool) or not isinstance(known, int | float) or not 0 <= known < 1e9:
        raise _ValueFaultError(f"{value!r} is no time; write a number of seconds, or 30m, or 1h30m")
    if known < option.least:
        raise _ValueFaultError(f"{value!r} is less than {option.least:g} s")
    return float(known)


def _seconds(text: str) -> float | None:
    if re.fullmatch(_DECIMAL, text):
        return float(text)
    if not re.fullmatch(r"(\d{1,9}(\.\d{1,9})?(ms|s|m|h|d))+", text):
        return None
    return sum(float(n) * _SPANS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", text))


def _allowance(option: Option, value: object) -> tuple[int, float | None]:
    if isinstance(value, tuple):
        return value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value, None
    match = re.fullmatch(r"(\d{1,12})|(\d{1,3}(?:\.\d{1,9})?)%", value.strip()) if isinstance(value, str) else None
    if match is None or (match[2] and float(match[2]) > 100):
        raise _ValueFaultError(f"{value!r} is neither a number of rows nor a percentage such as 0.5%")
    return (int(match[1]), None) if match[1] else (0, float(match[2]))


def _percent(option: Option, value: object) -> float:
    if isinstance(value, float) and 0 <= value <= 100:  # parsed before
        return value
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,9})?)\s*%", value.strip()) if isinstance(value, str) else None
    if match is None or float(match[1]) > 100:
        raise _ValueFaultError(f"{value!r} is no percentage such as 50%")
    return float(match[1])


def _remote(option: Option, value: object) -> str:
    if value in ("inputs", "keep", "delete"):
        return str(value)
    word, _, span = value.partition(":") if isinstance(value, str) else ("", "", "")
    seconds = _seconds(span.replace(" ", "")) if word == "expire" else None
    if seconds is None or seconds < 1:
        raise _ValueFaultError(f"{value!r} is none of inputs, keep, delete and expire:TIME, such as expire:7d")
    return f"expire:{int(seconds)}"


def _pairs(option: Option, value: object) -> tuple[tuple[str, str], ...]:
    """`NAME=VALUE` texts, pairs, or a mapping, as pairs; a name given again wins."""
    if isinstance(value, str):
        value = (value,)
    items: Iterable[Any]
    if isinstance(value, Mapping):
        items = (
            (name, given if option.kind is not Kind.PARAM else _json(name, given)) for name, given in value.items()
        )
    elif isinstance(value, Iterable):
        items = value
    else:
        raise _ValueFaultError(f"{value!r} is not written {option.kind.value}")
    return tuple(dict(_pair(option, item) for item in items).items())


def _pair(option: Option, item: object) -> tuple[str, str]:
    if isinstance(item, str):
        name, equals, text = item.partition("=")
        item = (name.strip(), text) if equals else item
    if not isinstance(item, tuple) or len(item) != 2 or not item[0] or not all(isinstance(part, str) for part in item):
        raise _ValueFaultError(f"{item!r} is not written {option.kind.value}")
    if option.kind is Kind.PARAM:
        _check_json(*item)
    return item


def _json(name: str, value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _ValueFaultError(f"the value of {name} is no JSON") from error


def _check_json(name: str, text: str) -> None:
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError as error:
        raise _ValueFaultError(
            f"the value of {name} is no JSON: {text[:60]!r}; a string needs its quotes, {name}='\"...\"'"
        ) from error


def _refuse(constant: str) -> None:
    raise ValueError(constant)


_PARSERS = {
    Kind.TEXT: _text,
    Kind.PATH: _path,
    Kind.FLAG: _flag,
    Kind.CHOICE: _choice,
    Kind.COUNT: _count,
    Kind.NUMBER: _number,
    Kind.SIZE: _size,
    Kind.DURATION: _duration,
    Kind.ALLOWANCE: _allowance,
    Kind.PERCENT: _percent,
    Kind.REMOTE: _remote,
    Kind.PARAM: _pairs,
    Kind.LABEL: _pairs,
    Kind.HEADER: _pairs,
}


# -- many at once


def read_job(path: str) -> dict[str, Any]:
    """The options that a job file sets, in their plain form. Raises ConfigError."""
    import tomllib  # only who reads one pays for it

    try:
        with open(path, "rb") as file:
            table = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"The job file {path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"The job file {path} is no TOML: {error}.") from error
    if "job" in table:
        raise ConfigError(f"The job file {path} names another job file; write its keys into one.")
    return parse_all(table, f" in {path}")


def parse_all(values: Mapping[str, object], where: str = "") -> dict[str, Any]:
    """Named values in their plain form; None counts as not given. Raises ConfigError."""
    for name in values:
        if name not in BY_NAME:
            from difflib import get_close_matches

            close = get_close_matches(name, BY_NAME, 1)
            hint = f"; did you mean {close[0]}?" if close else "."
            raise ConfigError(f"There is no option {name!r}{where}{hint}")
    return {name: parse(BY_NAME[name], v, f"{name}{where}") for name, v in values.items() if v is not None}
