"""The calls under /v1/batches. What the service refuses at once is refused here; the rest happens after create."""

import time
from typing import Any

import msgspec
from aiohttp import web

from streambatch.server import rules
from streambatch.server.asking import check_choice, expiry_of, json_object, need, wrong_type
from streambatch.server.door import SERVICE, RefusedError, answer
from streambatch.server.foreign import foreign_object, place_of
from streambatch.server.objects import batch_object, page
from streambatch.server.profiles import DAY_S, Profile, wrapped
from streambatch.server.query import after_of, limit_of
from streambatch.server.records import Batch, run_of
from streambatch.server.settings import Settings

MAX_PAIRS, MAX_KEY, MAX_VALUE = 16, 64, 512


async def create(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    profile = service.settings.service
    asked = _asked(await request.read(), profile)
    metadata = _metadata(asked.get("metadata"))
    expires_s = expiry_of("output_expires_after", asked.get("output_expires_after"), profile)
    wait_s = service.creates.wait_s()
    if wait_s > 0:
        told = f"Rate limit reached for batch creation: at most {service.settings.creates_per_hour:,} batches per hour."
        raise RefusedError(429, told, kind="requests", code="rate_limit_exceeded", retry_after_s=wait_s)
    met = service.faults.batch((metadata or {}).get("streambatch", ""))
    now = time.time()
    batch = service.store.add_batch(_new_batch(asked, metadata, expires_s, met, service.settings, now))
    for rule in met:
        if isinstance(rule, rules.FilesGone) and rule.input:
            service.store.lose_file(batch.input_file_id, now + rule.seconds)
    service.creates.count()
    service.runner.admit(batch, met)
    return answer(request, wrapped(profile, batch_object(batch, profile.shape)))


def _new_batch(
    asked: dict[str, Any],
    metadata: dict[str, str] | None,
    output_expires_s: int | None,
    met: list[rules.BatchRule],
    settings: Settings,
    now: float,
) -> Batch:
    """A batch as it begins, with the lies that the script wants of it."""
    profile = settings.service
    window_s = settings.window_s * profile.windows[asked["completion_window"]] // DAY_S
    hides = [rule for rule in met if isinstance(rule, rules.Hide)]
    hidden = max([rule.seconds for rule in hides], default=0.0)
    denied = max([rule.seconds for rule in hides if rule.by_id], default=0.0)
    views = [msgspec.to_builtins(rule) for rule in met if isinstance(rule, rules.View)]
    return Batch(
        seq=None, id=profile.batch_id(), run=run_of(metadata), endpoint=asked["endpoint"], input_file_id=asked["input_file_id"],
        completion_window=asked["completion_window"], status="validating", created_at=int(now), expires_at=int(now) + window_s,
        output_expires_s=output_expires_s, metadata=None if metadata is None else msgspec.json.encode(metadata).decode(),
        hidden_until=now + hidden if hidden else 0.0, denied_until=now + denied if denied else 0.0,
        view=msgspec.json.encode(views[-1] if views else {}).decode(),
    )  # fmt: skip


async def retrieve(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    if (stranger := place_of(request.match_info["id"], service.faults.script.foreign)) is not None:
        return answer(request, foreign_object(stranger, service.settings.service.shape))
    batch = _found(request)
    service.runner.looked(batch)
    return answer(request, batch_object(batch, service.settings.service.shape))


async def listing(request: web.Request) -> web.StreamResponse:
    """A page: first the batches of strangers that the script wants, then ours."""
    service, query = request.app[SERVICE], request.query
    profile = service.settings.service
    limit, foreign = limit_of(query, 20, 100), service.faults.script.foreign
    place = place_of(query.get("after", ""), foreign)
    after = after_of(query, service.store.batch_by_id) if place is None else None
    first = place + 1 if place is not None else 0 if after is None else foreign
    strangers = [foreign_object(n, profile.shape) for n in range(first, min(foreign, first + limit + 1))]
    ours = service.store.batches(limit + 1 - len(strangers), after)
    for batch in ours[: max(0, limit - len(strangers))]:
        service.runner.looked(batch)
    shown = strangers + [batch_object(batch, profile.shape) for batch in ours]
    if profile.bare_list:
        return answer(request, shown[:limit])
    return answer(request, page(shown[:limit], len(shown) > limit))


async def cancel(request: web.Request) -> web.StreamResponse:
    service = request.app[SERVICE]
    if place_of(request.match_info["id"], service.faults.script.foreign) is not None:
        raise RefusedError(409, "Cannot cancel a batch with status 'completed'.")
    batch = _found(request)
    now = int(time.time())
    live = ("validating", "in_progress", "finalizing")
    if service.store.update(batch.key, live, status="cancelling", cancelling_at=now, ending="cancelled"):
        service.runner.cancelled(batch)
    batch = service.store.batch(batch.key)
    if batch.status not in ("cancelling", "cancelled"):
        raise RefusedError(409, f"Cannot cancel a batch with status '{batch.status}'.")
    return answer(request, batch_object(batch, service.settings.service.shape))


def _found(request: web.Request) -> Batch:
    batch_id = request.match_info["id"]
    batch = request.app[SERVICE].store.batch_by_id(batch_id)
    if batch is None or batch.denied_until > time.time():
        raise RefusedError(404, f"No batch found with id '{batch_id}'.")
    return batch


# --------------------------------------------------------------------- what a create asks


def _asked(body: bytes, profile: Profile) -> dict[str, Any]:
    """The request, if the service would take it."""
    asked = json_object(body)
    for name in ("input_file_id", "endpoint", "completion_window"):
        need(asked, name)
    check_choice("endpoint", asked["endpoint"], profile.endpoints)
    check_choice("completion_window", asked["completion_window"], tuple(profile.windows))
    return asked


def _metadata(given: Any) -> dict[str, str] | None:
    """At most 16 pairs of text."""
    if given is None:
        return None
    if not isinstance(given, dict):
        raise wrong_type("metadata", "an object", given)
    if len(given) > MAX_PAIRS:
        message = (
            f"Invalid 'metadata': too many properties. Expected an object with at most {MAX_PAIRS} properties, "
            f"but got an object with {len(given)} properties instead."
        )
        raise RefusedError(400, message, param="metadata", code="object_above_max_properties")
    for key, value in given.items():
        if not isinstance(value, str):
            raise wrong_type(f"metadata.{key}", "a string", value)
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
