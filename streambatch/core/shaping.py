"""How rows become requests: what is asked for, what the first row fixes, and the shaper that follows from it.

Pure functions over bytes; `core.ready` and `core.prompts` know the two kinds of rows.
"""

from functools import lru_cache
from typing import Protocol

import msgspec
import xxhash

from streambatch.core.bodies import MESSAGES, input_field
from streambatch.core.models import Shaping, ShardLimits
from streambatch.core.ready import FIELDS, ReadyRows
from streambatch.core.rows import BadLineError, Request, Unfit, check_utf8
from streambatch.errors import ConfigError

DEFAULT_ENDPOINT = "/v1/chat/completions"
RESULTS, ROWS = "results", "rows"
NULLS = ("error", "empty", "skip")

__all__ = ["Asked", "Request", "Shaper", "Unfit", "make_shaper", "resolve", "shaping_hash"]


class Shaper(Protocol):
    """Makes a request of a row. `ordinal` counts the lines of all inputs from 0."""

    def shape(self, line: bytes, ordinal: int) -> Request | Unfit: ...


class Asked(msgspec.Struct, frozen=True):
    """What the user said about shaping; None where nothing was said. `params` maps a body field to its JSON text."""

    endpoint: str | None = None
    model: str | None = None
    system: str | None = None
    prompt: str | None = None
    params: tuple[tuple[str, str], ...] = ()
    id_field: str | None = None
    null: str = "error"  # error | empty | skip
    emit: str | None = None  # results | rows
    column: str = "answer"


@lru_cache(maxsize=4)
def make_shaper(shaping: Shaping) -> Shaper:
    """Compiles it. Raises ConfigError for a template that is none, naming its line."""
    if shaping.ready_made:
        return ReadyRows(shaping.endpoint, shaping.column)
    from streambatch.core.prompts import PlainRows  # brings the template engine

    return PlainRows(shaping)


def shaping_hash(shaping: Shaping, limits: ShardLimits) -> str:
    """Tells two ways of making shards apart; part of the metadata of every batch."""
    return xxhash.xxh3_128_hexdigest(msgspec.json.encode((shaping, limits)))


def resolve(first_row: bytes | None, asked: Asked) -> tuple[Shaping, str]:
    """The shaping that the first row fixes (None: there is no row), and what to emit.

    Raises ConfigError in one sentence that says what to add or leave out.
    """
    _check(asked)
    fields = None if first_row is None else _fields(first_row)
    if _is_ready_made(first_row, fields, asked):
        return _ready_made(fields, asked)
    shaping = _plain(asked)
    if first_row is not None:
        _try_out(first_row, fields, shaping)
    return shaping, ROWS if asked.emit is None else asked.emit


def _check(asked: Asked) -> None:
    if asked.null not in NULLS:
        raise ConfigError(f"--null is one of {', '.join(NULLS)}, not {asked.null!r}.")
    if asked.emit not in (None, RESULTS, ROWS):
        raise ConfigError(f"--emit is {RESULTS} or {ROWS}, not {asked.emit!r}.")
    if not asked.column:
        raise ConfigError("--column needs a name.")
    if asked.endpoint is not None and not asked.endpoint.startswith("/"):
        raise ConfigError(f"--endpoint is a path such as {DEFAULT_ENDPOINT}, not {asked.endpoint!r}.")


# -- ready-made requests


def _is_ready_made(first_row: bytes | None, fields: dict[str, msgspec.Raw] | None, asked: Asked) -> bool:
    if asked.prompt is not None or asked.system is not None:
        return False
    if first_row is None:
        return asked.model is None
    return fields is not None and "body" in fields and "url" in fields


def _ready_made(fields: dict[str, msgspec.Raw] | None, asked: Asked) -> tuple[Shaping, str]:
    if asked.model is not None or asked.params:
        flag = "--param" if asked.model is None else "--model"
        raise ConfigError(f"The rows are ready-made requests, which are sent as they are: leave {flag} out.")
    emit = RESULTS if asked.emit is None else asked.emit
    if emit == ROWS and asked.column in FIELDS:
        raise ConfigError(f"A ready-made request has a field {asked.column!r} itself: choose another --column.")
    endpoint = asked.endpoint
    if endpoint is None:
        endpoint = DEFAULT_ENDPOINT if fields is None else _text(fields["url"], DEFAULT_ENDPOINT)
    column = asked.column if emit == ROWS else None
    return Shaping(ready_made=True, endpoint=endpoint, column=column), emit


# -- plain rows


def _plain(asked: Asked) -> Shaping:
    params = _params(asked)
    model = msgspec.json.decode(params.pop("model")) if "model" in params else asked.model
    if not isinstance(model, str) or not model:
        raise ConfigError("Rows that are no ready-made requests need --model.")
    return Shaping(
        ready_made=False,
        endpoint=DEFAULT_ENDPOINT if asked.endpoint is None else asked.endpoint,
        model=model,
        system=asked.system,
        prompt=asked.prompt,
        params=tuple(params.items()),
        id_field=asked.id_field,
        null=asked.null,
        column=None if asked.emit == RESULTS else asked.column,
    )


def _params(asked: Asked) -> dict[str, str]:
    params: dict[str, str] = {}
    for name, text in asked.params:
        try:
            value = msgspec.json.format(text.encode(), indent=-1).decode()
            msgspec.json.decode(value)
        except (msgspec.DecodeError, RecursionError, UnicodeError):
            raise ConfigError(f"--param {name} needs a JSON value; text goes in double quotes.") from None
        if name in params or (name == "model" and asked.model is not None):
            raise ConfigError(f"--param {name} is given twice.")
        params[name] = value
    if params.get("stream") == "true":
        raise ConfigError("Batches can't stream: leave --param stream out.")
    return params


def _try_out(first_row: bytes, fields: dict[str, msgspec.Raw] | None, shaping: Shaping) -> None:
    """What no row can satisfy is said before anything is made."""
    place = input_field(shaping.endpoint)
    chat = place == MESSAGES or shaping.endpoint.endswith("/responses")
    if shaping.system is not None and not chat:
        raise ConfigError(f"A request for {shaping.endpoint} has no system message: leave --system out.")
    if shaping.prompt is None and not chat:
        raise ConfigError(f"Rows for {shaping.endpoint} need --prompt.")
    if place in (name for name, _ in shaping.params):
        raise ConfigError(f"--param {place} is what the prompt makes: leave it out.")
    if shaping.prompt is None and (fields is None or MESSAGES not in fields):
        seen = "is no JSON object" if fields is None else f"is no ready-made request and has no {MESSAGES!r}"
        raise ConfigError(f"The first row {seen}: add --prompt.")
    shaped = make_shaper(shaping).shape(first_row, 0)
    if isinstance(shaped, Unfit) and shaped.hopeless:
        raise ConfigError(f"{shaped.reason}.")


# -- looking at the first row


def is_object(row: bytes) -> bool:
    """Whether a line is a JSON object: the first one of these fixes how rows are shaped."""
    return _fields(row) is not None


def _fields(row: bytes) -> dict[str, msgspec.Raw] | None:
    try:
        check_utf8(row)
        return msgspec.json.decode(row, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError, BadLineError):
        return None


def _text(raw: msgspec.Raw, default: str) -> str:
    try:
        return msgspec.json.decode(raw, type=str)
    except msgspec.DecodeError:
        return default
