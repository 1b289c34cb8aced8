"""The calls under /v1/batches. What the service refuses at once is refused here; the rest happens after create."""

import time
from typing import Any

import msgspec
from aiohttp import web

from streambatch.server import script
from streambatch.server.bodies import BODIES
from streambatch.server.door import SERVICE, RefusedError, answer
from streambatch.server.objects import batch_object, page
from streambatch.server.query import after_of, limit_of
from streambatch.server.records import Batch, new_batch_id, run_of
from streambatch.server.uploads import LONGEST_S, SHORTEST_S
from streambatch.server.validation import KINDS

ENDPOINTS = tuple(BODIES)
WINDOWS = ("24h",)
MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512


async def create(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    asked = _asked(await request.read())
    metadata = _metadata(asked.get("metadata"))
    rules = service.faults.batch((metadata or {}).get("streambatch", ""))
    now = time.time()
    hidden = max([rule.seconds for rule in rules if isinstance(rule, script.Hide)], default=0.0)
    views = [msgspec.to_builtins(rule) for rule in rules if isinstance(rule, script.View)]
    batch = service.store.add_batch(
        Batch(
            seq=None, id=new_batch_id(), run=run_of(metadata), endpoint=asked["endpoint"], input_file_id=asked["input_file_id"],
            completion_window=asked["completion_window"], status="validating", created_at=int(now),
            expires_at=int(now) + service.settings.window_s, output_expires_s=_output_expiry(asked.get("output_expires_after")),
            metadata=None if metadata is None else msgspec.json.encode(metadata).decode(),
            hidden_until=now + hidden if hidden else 0.0, view=msgspec.json.encode(views[-1] if views else {}).decode(),
        )
    )  # fmt: skip
    service.runner.admit(batch, rules)
    return answer(request, batch_object(batch))


async def retrieve(request: web.Request) -> web.StreamResponse:
    return answer(request, batch_object(_found(request)))


async def listing(request: web.Request) -> web.StreamResponse:
    store = request.app[SERVICE].store
    limit = limit_of(request.query, 20, 100)
    found = store.batches(limit + 1, after_of(request.query, store.batch_by_id))
    return answer(request, page([batch_object(batch) for batch in found[:limit]], len(found) > limit))


async def cancel(request: web.Request) -> web.StreamResponse:
    service, batch = request.app[SERVICE], _found(request)
    now = int(time.time())
    live = ("validating", "in_progress", "finalizing")
    if service.store.update(batch.key, live, status="cancelling", cancelling_at=now, ending="cancelled"):
        service.runner.cancelled(batch)
    batch = service.store.batch(batch.key)
    if batch.status not in ("cancelling", "cancelled"):
        raise RefusedError(409, f"Cannot cancel a batch with status '{batch.status}'.")
    return answer(request, batch_object(batch))


def _found(request: web.Request) -> Batch:
    batch_id = request.match_info["id"]
    batch = request.app[SERVICE].store.batch_by_id(batch_id)
    if batch is None:
        raise RefusedError(404, f"No batch found with id '{batch_id}'.")
    return batch


# --------------------------------------------------------------------- what a create asks


def _asked(body: bytes) -> dict[str, Any]:
    """The request, if the service would take it."""
    try:
        asked = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise RefusedError(400, "We could not parse the JSON body of your request.")
    for name in ("input_file_id", "endpoint", "completion_window"):
        if asked.get(name) is None:
            raise RefusedError(
                400, f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter"
            )
        if not isinstance(asked[name], str):
            raise _wrong_type(name, "a string", asked[name])
    _check_choice("endpoint", asked["endpoint"], ENDPOINTS)
    _check_choice("completion_window", asked["completion_window"], WINDOWS)
    return asked


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        told = " and ".join(", ".join(f"'{one}'" for one in known).rsplit(", ", 1))
        raise RefusedError(
            400, f"Invalid value: '{value}'. Supported values are: {told}.", param=name, code="invalid_value"
        )


def _metadata(given: Any) -> dict[str, str] | None:
    """At most 16 pairs of text."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise _wrong_type("metadata", "an object", given)
    if len(given) > MAX_PAIRS:
        message = (
            f"Invalid 'metadata': too many properties. Expected an object with at most {MAX_PAIRS} properties, "
            f"but got an object with {len(given)} properties instead."
        )
        raise RefusedError(400, message, param="metadata", code="object_above_max_properties")
    for key, value in given.items():
        if not isinstance(value, str):
            raise _wrong_type(f"metadata.{key}", "a string", value)
        _check_length("metadata", f"'metadata' key '{key[:MAX_KEY]}'", key, MAX_KEY)
        _check_length(f"metadata.{key}", f"'metadata.{key}'", value, MAX_VALUE)
    return given


def _check_length(param: str, what: str, text: str, most: int) -> None:
    if len(text) > most:
        message = (
            f"Invalid {what}: string too long. Expected a string with maximum length {most}, "
            f"but got a string with length {len(text)} instead."
        )
        raise RefusedError(400, message, param=param, code="string_above_max_length")


def _output_expiry(given: Any) -> int | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("anchor") != "created_at":
        raise RefusedError(
            400,
            "Invalid value for 'output_expires_after.anchor': expected 'created_at'.",
            param="output_expires_after.anchor",
            code="invalid_value",
        )
    seconds = given.get("seconds")
    if not isinstance(seconds, int) or not SHORTEST_S <= seconds <= LONGEST_S:
        message = (
            f"Invalid value for 'output_expires_after.seconds': expected an integer from {SHORTEST_S} to {LONGEST_S}."
        )
        raise RefusedError(400, message, param="output_expires_after.seconds", code="invalid_value")
    return seconds


def _wrong_type(name: str, expected: str, value: Any) -> RefusedError:
    got = "null" if value is None else KINDS.get(type(value), "another type")
    return RefusedError(
        400, f"Invalid type for '{name}': expected {expected}, but got {got} instead.", param=name, code="invalid_type"
    )
