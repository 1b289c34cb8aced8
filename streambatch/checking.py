"""What works from here: the service is asked for lists that cost nothing, and each thing on the way there is judged.

Sends no rows and makes nothing. Composes the settings as a run would, so that what is wrong with them shows in its place.
"""

import platform
import ssl
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio
import msgspec

from streambatch import access, configure
from streambatch.core import checks as c
from streambatch.core.profiles import OPENAI, Profile
from streambatch.core.wire import decode_page
from streambatch.edge.clock import SystemClock
from streambatch.edge.service import Service, current_key, host_port, is_loopback, proxy_for
from streambatch.errors import ApiError, ConfigError, StreambatchError

if TYPE_CHECKING:
    from streambatch.edge.http import Connection

CALL_S = 20.0  # a service that answers later than this is no use to a check
NAMES = ("address", "proxy", "connection", "certificate", "key", "batches", "files", "model", "clock")


class Target(msgspec.Struct, frozen=True):
    """What is to be checked. `origin` and `key_source` say where address and key come from; `key_fault` why there is no key."""

    service: Service
    origin: str
    key_source: str
    key_fault: ConfigError | None = None
    model: str | None = None
    model_skipped: str = "No model is named; name one with --model."


async def check(values: Mapping[str, Any], environ: Mapping[str, str], given: Service | None = None) -> c.Checks:
    """Check what the options say, or the service `given`. Whatever is wrong comes back as a failed check."""
    try:
        profile = configure.profile(values)
    except ConfigError as error:
        return _stopped("", "profile", error)
    try:
        target = await _target(values, environ, given, profile)
    except ConfigError as error:
        return _stopped("", "address", error)
    return await look(target)


def embedded(service: Service) -> Target:
    """The embedded server, whose list of models says nothing about those of a run."""
    return Target(
        service, "the embedded server", "the server itself", model_skipped="Not asked of the embedded server."
    )


async def look(target: Target) -> c.Checks:
    """Ask the service, and judge."""
    service = target.service
    try:
        way = _way(service)
    except ConfigError as error:
        return _stopped(service.base_url, "proxy", error)
    try:
        from streambatch.edge.http import Connection  # brings aiohttp

        connection = Connection(service)
    except ConfigError as error:
        return _stopped(service.base_url, "certificate", error)
    try:
        return _judged(target, way, await _Asked.of(connection, target))
    finally:
        with anyio.CancelScope(shield=True):
            await connection.aclose()


def _stopped(base_url: str, at: str, error: ConfigError) -> c.Checks:
    """What can't begin: one failure, and the rest not tried."""
    said = f"Not tried: see {at}."
    names = NAMES if at in NAMES else (at, *NAMES)
    rest = (c.failed(name, error) if name == at else c.Check(name, "skipped", said) for name in names)
    return c.conclude(base_url, (*rest, _versions()))


# -- the settings


async def _target(
    values: Mapping[str, Any], environ: Mapping[str, str], given: Service | None, profile: Profile
) -> Target:
    model = values.get("model")
    if given is not None:
        service = access.by_hand(given, values, profile)
        source = "the function that was given" if callable(given.api_key) else "the service that was given"
        fault = await _fault(service)
        return Target(service if fault is None else _keyless(service), "as given", source, fault, model)
    keyless = access.keyless(values, environ, profile)
    try:
        service = msgspec.structs.replace(keyless, api_key=access.key(values, environ, profile))
        fault = await _fault(service)
    except ConfigError as error:
        service, fault = keyless, error
    where, source = _origin(values, environ, profile), _key_source(values, profile)
    return Target(service if fault is None else keyless, where, source, fault, model)


async def _fault(service: Service) -> ConfigError | None:
    """Why a service's key can't be sent; an empty one is sent to nobody."""
    try:
        key = await current_key(service)
    except ConfigError as error:
        return error
    return None if key else ConfigError("There is no key: the one that was given is empty; give another.")


def _keyless(service: Service) -> Service:
    return msgspec.structs.replace(service, api_key="")


def _origin(values: Mapping[str, Any], environ: Mapping[str, str], profile: Profile) -> str:
    if "base_url" in values:
        return "as base_url says"
    if profile.base_url == OPENAI.base_url and environ.get("OPENAI_BASE_URL"):
        return "from the variable OPENAI_BASE_URL"
    return f"of the profile {profile.name}" if "profile" in values else "the default"


def _key_source(values: Mapping[str, Any], profile: Profile) -> str:
    path = values.get("api_key_file")
    if path is not None:
        return f"the file {path}"
    return f"the variable {values.get('api_key_env', profile.key_env)}"


# -- the way there


def _way(service: Service) -> tuple[str, bool]:
    """Which proxy leads there, in words, and whether one does. Raises ConfigError for one that can't be used."""
    host = host_port(service.base_url).rpartition(":")[0].strip("[]")
    proxy = proxy_for(service.base_url, service.trust_env)
    if proxy is not None:
        return f"Through {host_port(proxy.url)}, as the environment says.", True
    if is_loopback(host):
        return "None: this machine itself is never reached through one.", False
    return "None: the environment names none for this address.", False


# -- the calls


class _Asked(msgspec.Struct, frozen=True):
    """The replies to all calls of a check. What can't be asked any more has the first reply again."""

    batches: c.Reply
    files: c.Reply
    model: c.Reply
    models: c.Reply | None

    @classmethod
    async def of(cls, connection: "Connection", target: Target) -> "_Asked":
        root = target.service.base_url.rstrip("/")
        batches = await _ask(connection, f"{root}/batches?limit=1", "the list of batches", _is_page)
        if not batches.answered or batches.status == 401:
            return cls(batches, batches, batches, None)
        files = await _ask(connection, f"{root}/files?limit=1", "the list of files", _is_list)
        if target.model is None:
            return cls(batches, files, batches, None)
        name = quote(target.model, safe="")
        model = await _ask(connection, f"{root}/models/{name}", "the look-up of the model", _anything)
        listed = c.wants_list(model)
        models = await _ask(connection, f"{root}/models", "the list of models", _anything) if listed else None
        return cls(batches, files, model, models)

    @property
    def all(self) -> tuple[c.Reply, ...]:
        return (self.batches, self.files, self.model, *([] if self.models is None else [self.models]))


async def _ask(connection: "Connection", url: str, doing: str, understood: Callable[[bytes], None]) -> c.Reply:
    clock = SystemClock()
    began = clock.monotonic()
    answered, body, skew_s = False, b"", None
    try:
        with anyio.move_on_after(CALL_S) as limit:
            body, date = await connection.call("GET", url, doing)
            answered, skew_s = True, None if date is None else clock.wall() - date
            understood(body)
    except StreambatchError as error:
        reached = answered or (isinstance(error, ApiError) and error.status is not None)
        untrusted = not reached and isinstance(error.__cause__, ssl.SSLError)
        return c.Reply(error, reached, b"", skew_s, clock.monotonic() - began, untrusted)
    if limit.cancelled_caught:
        said = f"The service at {host_port(url)} did not answer within {CALL_S:.0f} s in {doing}; try again later."
        return c.Reply(ApiError(said, retryable=True))
    return c.Reply(None, True, body, skew_s, clock.monotonic() - began)


def _is_page(body: bytes) -> None:
    try:
        decode_page(body, None)
    except ApiError as error:
        raise ApiError("The answer is no list of batches; check the base URL.") from error


def _is_list(body: bytes) -> None:
    try:
        msgspec.json.decode(body, type=_Listed | list[msgspec.Raw])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ApiError("The answer is no list of files; check the base URL.") from error


class _Listed(msgspec.Struct):
    data: list[msgspec.Raw]


def _anything(body: bytes) -> None:
    """Judged by who asked."""


# -- the judgement


def _judged(target: Target, way: tuple[str, bool], asked: _Asked) -> c.Checks:
    service = target.service
    where, first = host_port(service.base_url), asked.batches
    said, proxied = way
    trusted_by = (
        "the system's certificates" if service.ca_bundle is None else f"the certificates in {service.ca_bundle}"
    )
    found = (
        c.Check("address", "ok", f"{service.base_url}, {target.origin}."),
        c.proxy(said, proxied, first),
        c.connection(where, proxied, first),
        c.certificate(service.base_url.startswith("https:"), trusted_by, first),
        c.key(target.key_source, target.key_fault, asked.all),
        c.batches(asked.batches),
        c.files(asked.files, asked.batches),
        _model(target, asked),
        c.clock(asked.all),
        _versions(),
    )
    return c.conclude(service.base_url, found)


def _model(target: Target, asked: _Asked) -> c.Check:
    if target.model is None:
        return c.Check("model", "skipped", target.model_skipped)
    return c.model(target.model, asked.model, asked.models)


def _versions() -> c.Check:
    from importlib import metadata

    try:
        ours = metadata.version("streambatch-engine")
    except metadata.PackageNotFoundError:  # run from a source tree
        ours = "from a source tree"
    said = f"streambatch {ours}, Python {platform.python_version()}, {ssl.OPENSSL_VERSION}, {platform.system()}."
    return c.Check("versions", "ok", said)
