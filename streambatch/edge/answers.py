"""What went wrong with a call, as one ApiError: answers that are no success, and connections that failed.

One table for each; every sentence says what happened, where, and what to do, and shows no secret.
"""

import asyncio
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import aiohttp
import msgspec

from streambatch.core.answers import ErrorAnswer, decode_error
from streambatch.core.wire import Refusal, refusal_of_error
from streambatch.edge.service import redact
from streambatch.errors import ApiError, ConfigError

# -- answers

RETRYABLE = frozenset({408, 409, 425, 429})
_SENTENCES: dict[int, tuple[str, str]] = {
    401: ("The service refused the key", "Check the key, in its variable or its file."),
    403: (
        "The service does not allow this key to go on with {doing}",
        "Check the key's permissions, organisation and project.",
    ),
    404: ("The service does not know what was asked for in {doing}", "Check the base URL if this goes on."),
    408: ("The service gave up waiting in {doing}", ""),
    413: ("The service finds it too large: {doing}", ""),
    429: ("The service asks to slow down in {doing}", ""),
}
_BILLING = ("The service refuses for billing reasons in {doing}", "Settle that with the service.")
_FAILED = ("The service failed in {doing}", "")
_REDIRECTED = ("The service answered with a redirect in {doing}", "Give the final address as base URL.")
_REFUSED = ("The service refused {doing}", "")


def of_answer(doing: str, status: int, body: bytes, headers: Mapping[str, str], secrets: Iterable[str]) -> ApiError:
    """The error that an unsuccessful answer means. It is sure to have had no effect only with a 4xx other than 408."""
    answer = decode_error(status, body, headers)
    message = redact(answer.message, secrets)
    error = ApiError(
        message,
        status=status,
        code=None if answer.code is None else redact(answer.code, secrets),
        param=None if answer.param is None else redact(answer.param, secrets),
        retry_after_s=answer.retry_after_s,
        maybe_done=not 400 <= status < 500 or status == 408,
    )
    billing = refusal_of_error(error) is Refusal.BILLING
    error.retryable = not billing and _retryable(answer)
    error.args = (_sentence(doing, error, message, billing),)
    return error


def _retryable(answer: ErrorAnswer) -> bool:
    if answer.should_retry is not None:
        return answer.should_retry
    return answer.status >= 500 or answer.status in RETRYABLE


def _sentence(doing: str, error: ApiError, message: str, billing: bool) -> str:
    what, advice = _BILLING if billing else _template(error.status or 0)
    reason = f"{error.status} {error.code}" if error.code else str(error.status)
    said = f": {message.rstrip('.')}." if message else "."
    return f"{what.format(doing=doing)} ({reason}){said} {advice}".rstrip()


def _template(status: int) -> tuple[str, str]:
    if 300 <= status < 400:
        return _REDIRECTED
    return _SENTENCES.get(status, _FAILED if status >= 500 else _REFUSED)


# -- connections


class _Row(msgspec.Struct, frozen=True):
    """Exceptions, and what they mean. Before a connection stands nothing is `written`."""

    kinds: type[BaseException] | tuple[type[BaseException], ...]
    sentence: str
    written: bool = True
    retryable: bool = True


_UNREACHED = "The service at {where} can't be reached"
_NO_PROXY = "The proxy {proxy} on the way to {where} can't be reached ({why}); check HTTPS_PROXY."
_UNTRUSTED = "The certificate of {where} can't be trusted ({why}); give your authority's certificates with --ca-bundle."
_UNNAMED = _UNREACHED + ": its name is not found ({why}); check the base URL and your network."
_CONNECTIONS = (  # the first row that fits counts
    _Row(
        (aiohttp.ClientConnectorCertificateError, ssl.SSLCertVerificationError),
        _UNTRUSTED,
        written=False,
        retryable=False,
    ),
    _Row(
        aiohttp.ClientConnectorSSLError, "No secure connection to {where} ({why}); check the base URL.", written=False
    ),
    _Row(aiohttp.ClientProxyConnectionError, _NO_PROXY, written=False),
    _Row(
        aiohttp.ClientHttpProxyError,
        "The proxy {proxy} will not connect to {where} ({why}); check HTTPS_PROXY.",
        written=False,
    ),
    _Row(aiohttp.ClientConnectorDNSError, _UNNAMED, written=False),
    _Row(aiohttp.ClientConnectorError, _UNREACHED + " ({why}); check the base URL and your network.", written=False),
    _Row(aiohttp.ConnectionTimeoutError, _UNREACHED + ": no connection in time; check your network.", written=False),
    _Row(
        aiohttp.InvalidURL, "The address {where} is no valid one; check the base URL.", written=False, retryable=False
    ),
    _Row(TimeoutError, "The service at {where} did not answer in time in {doing}."),
    _Row(aiohttp.ClientPayloadError, "The answer of {where} was cut short in {doing}."),
    _Row(aiohttp.ServerDisconnectedError, "The service at {where} closed the connection in {doing}."),
    _Row(aiohttp.ClientResponseError, "The service at {where} answered with something that is not HTTP in {doing}."),
    _Row(
        (aiohttp.ClientError, ConnectionError, ssl.SSLError), "The connection to {where} was lost in {doing} ({why})."
    ),
)
_NO_CONNECTION = (
    aiohttp.ClientConnectorDNSError,
    aiohttp.ConnectionTimeoutError,
)  # with a proxy these are about the proxy


@contextmanager
def map_errors(doing: str, where: str, proxy: str | None) -> Iterator[None]:
    """Turn exceptions of aiohttp and of sockets into ApiError."""
    try:
        yield
    except asyncio.CancelledError:
        raise
    except Exception as error:
        mapped = of_connection(error, doing, where, proxy)
        if mapped is None:
            raise
        holds_our_headers = isinstance(error, aiohttp.ClientResponseError)  # and so the key
        raise mapped from (None if holds_our_headers else error)


def of_connection(error: Exception, doing: str, where: str, proxy: str | None) -> ApiError | None:
    """The error that a failed connection means; None for one that is not about a connection."""
    row = next((row for row in _CONNECTIONS if isinstance(error, row.kinds)), None)
    if row is None:
        return None
    sentence = _NO_PROXY if proxy is not None and isinstance(error, _NO_CONNECTION) else row.sentence
    said = sentence.format(where=where, doing=doing, proxy=proxy, why=_why(error))
    unwanted = isinstance(error, aiohttp.ClientHttpProxyError) and error.status < 500  # a proxy that will not have us
    mapped = ApiError(said, retryable=row.retryable and not unwanted, maybe_done=row.written)
    if not row.retryable:
        mapped.exit_code = ConfigError.exit_code  # the user must change something first
    return mapped


def _why(error: BaseException) -> str:
    """The operating system's, or the peer's, word, without addresses or objects."""
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return f"{error.status} {redact(error.message)}".strip()
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        error = error.certificate_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return redact(error.verify_message).rstrip(".")
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if not isinstance(inner, OSError) or inner.errno is None:
        return type(inner).__name__
    return (
        os.strerror(inner.errno) if inner.errno > 0 else str(inner.strerror)
    ).lower()  # below 0: a name look-up's own
