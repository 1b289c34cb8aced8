"""In which setting a visit differs from its run, in the words that users type. Pure."""

import shlex

import msgspec

from streambatch.core.models import Settings, Shaping

FLAGS = {
    "base_url": "--base-url",
    "organization": "OPENAI_ORG_ID",
    "project": "OPENAI_PROJECT_ID",
    "profile": "--profile",
    "emit": "--emit",
    "column": "--column",
    "endpoint": "--endpoint",
    "model": "--model",
    "system": "--system",
    "prompt": "--prompt",
    "id_field": "--id",
    "null": "--null",
    "max_requests": "--max-requests",
    "max_bytes": "--max-bytes",
    "max_line_bytes": "--max-line-bytes",
}
LOCAL = "local"
SHOWN = 60  # letters of a long value
ADVICE = "use the first, or start a new run with another -o."


def difference(before: Settings, now: Settings) -> str | None:
    """The first setting that differs, with both values, as a sentence; None where all agree. What follows from another one of
    them comes behind it."""
    if before.shaping.ready_made != now.shaping.ready_made:
        return _sentence(_rows(before.shaping.ready_made), _rows(now.shaping.ready_made))
    for name in ("profile", "base_url", "organization", "project", "emit"):
        then, today = getattr(before, name), getattr(now, name)
        if then != today:
            return _sentence(_worded(name, then, today), _worded(name, today, then))
    rest = ((before.shaping, now.shaping), (before.limits, now.limits), (before, now), (before.dialect, now.dialect))
    for then, today in rest:
        found = _in(then, today)
        if found is not None:
            return found
    return None


def _in(before: msgspec.Struct, now: msgspec.Struct) -> str | None:
    for name in before.__struct_fields__:
        then, today = getattr(before, name), getattr(now, name)
        if then == today or isinstance(then, msgspec.Struct) or (name == "column" and isinstance(before, Shaping)):
            continue
        if name == "params":
            return _sentence(_params(then, today), _params(today, then))
        if name not in FLAGS:
            return f"This run was started with {name} {_json(then)}, now it is {_json(today)}; {ADVICE}"
        return _sentence(_worded(name, then, today), _worded(name, today, then))
    return None


def _sentence(before: str, now: str) -> str:
    return f"This run was started {before}, now it is run {now}; {ADVICE}"


def _worded(name: str, value: object, other: object) -> str:
    flag = FLAGS[name]
    if name == "base_url" and value == LOCAL:
        return "with --local"
    if value is None:
        return f"without {flag}"
    return f"with {flag} {_shown(str(value), str(other))}"


def _params(mine: tuple[tuple[str, str], ...], other: tuple[tuple[str, str], ...]) -> str:
    """Those that the other side does not have, or has otherwise."""
    theirs = dict(other)
    own = [f"--param {_shown(f'{name}={text}', '')}" for name, text in mine if theirs.get(name) != text]
    if own:
        return f"with {' '.join(own)}"
    missing = [name for name in theirs if name not in dict(mine)]
    return f"without --param {' or '.join(missing)}" if missing else "with its --param in another order"


def _rows(ready_made: bool) -> str:
    return "with ready-made requests" if ready_made else "with plain rows"


def _shown(text: str, other: str) -> str:
    """The value as it would be typed; of a long one what is around the first letter that differs."""
    if len(text) <= SHOWN:
        return shlex.quote(text)
    at = next((k for k, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), min(len(text), len(other)))
    first = max(0, min(at - SHOWN // 3, len(text) - SHOWN))
    head, tail = "..." if first else "", "..." if first + SHOWN < len(text) else ""
    return shlex.quote(f"{head}{text[first : first + SHOWN]}{tail}")


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


# -- what a batch's metadata tell


def cut_difference(before: str, now: str) -> str:
    """In what two `streambatch-cut` values differ, as far as they tell: their limits are written out, the rest is a hash."""
    then, today = before.split("/"), now.split("/")
    if len(then) == len(today) == 4:
        for flag, a, b in zip(("--max-requests", "--max-bytes"), then, today, strict=False):
            if a != b:
                return f"with {flag} {a[:15]}, not {b}"
    return (
        "with other settings: one of --endpoint, --model, --system, --prompt, --param, --id, --null, --column, --emit or"
        " --max-line-bytes is not what it was"
    )
