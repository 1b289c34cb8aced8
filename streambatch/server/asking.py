"""What a call asks for, checked in the service's words: JSON bodies, fields, choices, expiries. Knows no files or batches."""

from collections.abc import Sequence
from typing import Any

import msgspec

from streambatch.server.door import RefusedError
from streambatch.server.profiles import Profile
from streambatch.server.validation import KINDS


def json_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is."""
    try:
        asked = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise RefusedError(400, "We could not parse the JSON body of your request.")
    return asked


def need(asked: dict[str, Any], name: str, kind: type = str) -> Any:
    """A field that must be there."""
    value = asked.get(name)
    if value is None:
        raise RefusedError(400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise wrong_type(name, KINDS[kind], value)
    return value


def check_choice(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        told = " and ".join(", ".join(f"'{one}'" for one in known).rsplit(", ", 1))
        raise RefusedError(
            400, f"Invalid value: '{value}'. Supported values are: {told}.", param=name, code="invalid_value"
        )


def expiry_of(name: str, given: Any, profile: Profile) -> int | None:
    """The seconds of an `{anchor, seconds}`; None where nothing was given."""
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("anchor") != "created_at":
        told = f"Invalid value for '{name}.anchor': expected 'created_at'."
        raise RefusedError(400, told, param=f"{name}.anchor", code="invalid_value")
    seconds, least, most = given.get("seconds"), profile.shortest_expiry_s, profile.longest_expiry_s
    if not isinstance(seconds, int) or not least <= seconds <= most:
        told = f"Invalid value for '{name}.seconds': expected an integer from {least} to {most}."
        raise RefusedError(400, told, param=f"{name}.seconds", code="invalid_value")
    return seconds


def wrong_type(name: str, expected: str, value: Any) -> RefusedError:
    got = "null" if value is None else KINDS.get(type(value), "another type")
    return RefusedError(
        400, f"Invalid type for '{name}': expected {expected}, but got {got} instead.", param=name, code="invalid_type"
    )
