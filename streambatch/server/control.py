"""The calls of the local server alone: the ledger, and the fault script. And the models, which take one line each."""

import asyncio
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
from aiohttp import web

from streambatch.errors import ConfigError
from streambatch.server.door import SERVICE, RefusedError, answer
from streambatch.server.faults import Faults
from streambatch.server.objects import MODELS, model_object
from streambatch.server.script import Script, parse_script, to_plain

ROWS_AT_ONCE = 5_000


async def ledger(request: web.Request) -> web.StreamResponse:
    """The figures; with `rows=1` row by row, as JSON lines."""
    service, run, rows = request.app[SERVICE], request.query.get("run"), request.query.get("rows", "0")
    if rows not in ("0", "1"):
        raise RefusedError(400, "Invalid 'rows': expected 0 or 1.", param="rows", code="invalid_value")
    if rows == "0":
        return answer(request, await asyncio.to_thread(service.ledger, run))
    response = web.StreamResponse()
    response.content_type = "application/jsonl"
    told = await asyncio.to_thread(service.ledger_rows, run)
    try:
        await response.prepare(request)
        while block := await asyncio.to_thread(_some, told):
            await response.write(block)
    finally:
        await asyncio.to_thread(told.close)
    await response.write_eof()
    return response


def _some(told: Iterator[bytes]) -> bytes:
    return b"".join(islice(told, ROWS_AT_ONCE))


async def get_faults(request: web.Request) -> web.StreamResponse:
    faults = request.app[SERVICE].faults
    log = {"log": faults.log()} if request.query.get("log") == "1" else {}
    return answer(request, _told(faults) | msgspec.to_builtins(log))


async def set_faults(request: web.Request) -> web.StreamResponse:
    """Another script, with fresh counters. Batches that are there keep what met them at create."""
    try:
        data = msgspec.json.decode(await request.read())
        request.app[SERVICE].faults = Faults(parse_script(data, "The request body"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(400, "The request body is not JSON.") from error
    except ConfigError as error:
        raise RefusedError(400, str(error), code="invalid_script") from error
    return answer(request, _told(request.app[SERVICE].faults))


async def clear_faults(request: web.Request) -> web.StreamResponse:
    request.app[SERVICE].faults = Faults(Script())
    return answer(request, _told(request.app[SERVICE].faults))


def _told(faults: Faults) -> dict[str, Any]:
    return {"script": to_plain(faults.script), "hits": faults.hits()}


async def models(request: web.Request) -> web.StreamResponse:
    return answer(request, {"object": "list", "data": [model_object(name) for name in _known(request)]})


async def model(request: web.Request) -> web.StreamResponse:
    name = request.match_info["id"]
    if name not in _known(request):
        raise RefusedError(
            404,
            f"The model '{name}' does not exist or you do not have access to it.",
            param="model",
            code="model_not_found",
        )
    return answer(request, model_object(name))


def _known(request: web.Request) -> tuple[str, ...]:
    service = request.app[SERVICE]
    given, own = service.faults.script.models, service.settings.service.models
    return tuple(given) if given is not None else MODELS if own is None else own
