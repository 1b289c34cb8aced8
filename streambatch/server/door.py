"""What every call passes on its way in and out: Host, key, the fault script; envelopes and headers. Knows no files or batches."""

import asyncio
import gzip
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from aiohttp import web

from streambatch.server import rules
from streambatch.server.objects import dumped, envelope
from streambatch.server.service import Service
from streambatch.server.settings import is_loopback

SERVICE = web.AppKey("service", Service)
LABELS = web.AppKey("labels", dict[Any, str])  # handler -> its name in fault scripts
BEGAN: ContextVar[float] = ContextVar("began", default=0.0)
RULES: ContextVar[list[rules.HttpRule]] = ContextVar("rules")  # that hit this call and are the handler's to carry out
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
STREAMED = ("upload", "part", "content")  # these stall in the middle of their bytes, not before
EVERYWHERE = ("0.0.0.0", "::")  # bound to all addresses, so any name may be ours; a key is then required
log = logging.getLogger("streambatch.server")


class RefusedError(Exception):
    """An error answer of the service."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.body = envelope(message, kind, param, code)


class HungUpError(Exception):
    """The script closed the connection."""


def answer(request: web.Request, value: Any, status: int = 200, compact: bool = False) -> web.Response:
    """JSON as the service sends it: mostly pretty, gzip where the client takes it, chunked, without a length."""
    body = dumped(value, compact)
    response = web.Response(status=status, content_type="application/json")
    if takes_gzip(request.headers.get("Accept-Encoding", "")):
        body = gzip.compress(body, 1)
        response.headers["Content-Encoding"] = "gzip"
    response.body = body
    if request.version >= (1, 1):
        response.enable_chunked_encoding()
    return response


def takes_gzip(accepts: str) -> bool:
    """Whether an Accept-Encoding names gzip, and not to forbid it."""
    weights = [
        weight for name, _, weight in (part.partition(";") for part in accepts.split(",")) if name.strip() == "gzip"
    ]
    return bool(weights) and re.fullmatch(r"\s*q=0(\.0*)?\s*", weights[0]) is None


@web.middleware
async def envelopes(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Errors leave in the service's form."""
    BEGAN.set(time.monotonic())
    try:
        return await handler(request)
    except RefusedError as refusal:
        response = answer(request, refusal.body, refusal.status)
        if refusal.retry_after_s is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after_s)))
        return response
    except (HungUpError, ConnectionError):
        return web.Response()  # nobody reads it
    except web.HTTPException as error:
        return answer(request, envelope(_plain(request, error.status)), error.status)
    except Exception:
        log.exception("%s %s failed", request.method, request.path)
        told = "The server had an error while processing your request. Sorry about that!"
        return answer(request, envelope(told, "server_error"), 500)


def _plain(request: web.Request, status: int) -> str:
    if status == 404:
        return f"Invalid URL ({request.method} {request.path})"
    if status == 405:
        return f"Not allowed to {request.method} on {request.path} (HINT: Perhaps you meant to use a different HTTP method?)"
    if status == 413:
        return "The request body is too large."
    return "The request could not be understood."


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Only this machine's names for us (or the address we are bound to), and a key."""
    service = request.app[SERVICE]
    name = _host_name(request.headers.get("Host", ""))
    if not is_loopback(name) and service.settings.host not in (name, *EVERYWHERE):
        raise RefusedError(
            403, "This server answers only under its own address.", kind="permission_error", code="host_not_allowed"
        )
    kind, _, key = request.headers.get("Authorization", "").partition(" ")
    if service.settings.service.api_key_header and "api-key" in request.headers:
        kind, key = "bearer", request.headers["api-key"]
    if kind.lower() != "bearer" or not key.strip():
        message = (
            "You didn't provide an API key. You need to provide your API key in an Authorization header using Bearer auth "
            "(i.e. Authorization: Bearer YOUR_KEY)."
        )
        raise RefusedError(401, message)
    expected = service.settings.api_key
    if expected is not None and not hmac.compare_digest(key.strip().encode(), expected.encode()):
        raise RefusedError(401, "Incorrect API key provided.", code="invalid_api_key")
    return await handler(request)


def _host_name(host: str) -> str:
    """The name in a Host header, without port and brackets; as it is where it has no such form, which no check accepts."""
    found = re.fullmatch(r"\[([0-9A-Fa-f:.]+)\](?::\d+)?|([^:\[\]]+)(?::\d+)?", host)
    return host if found is None else (found[1] or found[2])


@web.middleware
async def misbehave(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Whatever the script wants of this call, in its order; then the call itself."""
    route = request.app[LABELS].get(request.match_info.handler)
    met = request.app[SERVICE].faults.http(route) if route is not None else []
    if met and (route != "upload" or isinstance(met[-1], rules.Answer | rules.Drop)):  # else who reads its body does
        request.app[SERVICE].faults.note(met, await _subject(request))
    for rule in met:
        if isinstance(rule, rules.Delay):
            await asyncio.sleep(rule.seconds)
        elif isinstance(rule, rules.Hang) and route not in STREAMED:
            await stall(rule.seconds)
        elif isinstance(rule, rules.Answer):
            return _scripted(request, rule)
        elif isinstance(rule, rules.Drop):
            hang_up(request)
    RULES.set(met)
    return await _afterwards(request, met, await handler(request))


async def _subject(request: web.Request) -> str:
    """What a call is about, for the log of what the script hit."""
    if "id" in request.match_info:
        return request.match_info["id"]
    if request.method != "POST":
        return ""
    if request.content_type == "multipart/form-data":
        found = re.search(rb'filename="([^"]*)"', await request.content.readany())
    else:
        found = re.search(rb'"streambatch"\s*:\s*"([^"]*)"', await request.read())
    return "" if found is None else found[1].decode("utf-8", "replace")


async def _afterwards(
    request: web.Request, met: list[rules.HttpRule], response: web.StreamResponse
) -> web.StreamResponse:
    """What the script does to the answer of a call that was carried out."""
    for rule in met:
        if isinstance(rule, rules.Late):
            await stall(rule.seconds)
    if any(isinstance(rule, rules.ActAndDrop) for rule in met):
        hang_up(request)
    if any(isinstance(rule, rules.Garble) for rule in met) and isinstance(response, web.Response):
        return web.Response(body=b'{"id": "batch_', content_type="application/json", status=response.status)
    return response


async def stall(seconds: float | None) -> None:
    """Wait so long; without a number until the server ends."""
    if seconds is None:
        await asyncio.Event().wait()
    else:
        await asyncio.sleep(seconds)


def hang_up(request: web.Request) -> None:
    """Close the connection under the client."""
    if request.transport is not None:
        request.transport.abort()
    raise HungUpError


def _scripted(request: web.Request, rule: rules.Answer) -> web.Response:
    usual = "server_error" if rule.status >= 500 else "requests" if rule.status == 429 else "invalid_request_error"
    kind = usual if rule.code is None else TYPES.get(rule.code, usual)
    message = rule.message if rule.message is not None else MESSAGES.get(rule.status, "The request failed.")
    told = envelope(message, kind if rule.type is None else rule.type, rule.param, rule.code)
    response = answer(request, told, rule.status)
    if rule.body is not None:
        response = web.Response(status=rule.status, text=rule.body)
    if rule.retry_after_s is not None:
        response.headers["Retry-After"] = f"{rule.retry_after_s:g}"
    response.headers.update(rule.headers)
    return response


TYPES = dict.fromkeys(  # of codes whose type is not that of their status
    (
        "insufficient_quota", "credit_balance_exhausted", "organization_spend_limit_exceeded", "project_spend_limit_exceeded",
        "organization_usage_limit_exceeded", "billing_hard_limit_reached",
    ),
    "insufficient_quota",
) | {"slow_down": "rate_limit_error", "server_is_overloaded": "service_unavailable_error"}  # fmt: skip
MESSAGES = {
    401: "Incorrect API key provided.",
    404: "Not found.",
    429: "Rate limit reached for requests.",
    500: "The server had an error while processing your request. Sorry about that!",
    502: "Bad gateway.",
    503: "That model is currently overloaded with other requests.",
    504: "Gateway timeout.",
}


async def stamp(request: web.Request, response: web.StreamResponse) -> None:
    """The headers of every answer."""
    response.headers["x-request-id"] = f"req_{secrets.token_hex(16)}"
    response.headers["openai-version"] = "2020-10-01"
    response.headers["openai-organization"] = "streambatch-local"
    response.headers["openai-processing-ms"] = str(max(1, round((time.monotonic() - BEGAN.get()) * 1000)))
    response.headers["Server"] = "streambatch"
