"""Service: where the provider is and how we show who we are; what may be said of it; which proxy leads there.

Its repr never shows the key or a header's value. Sends nothing.
"""

import inspect
import ipaddress
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

import msgspec

from streambatch.core.profiles import AUTHORIZATION
from streambatch.core.wording import one_line
from streambatch.errors import ConfigError

LOCAL = "local"  # the base URL of a run whose embedded server is not started yet
KeySource = str | Callable[[], str | Awaitable[str]]
HeaderPairs = tuple[tuple[str, str], ...]


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """A service with an OpenAI-shaped batch API.

    `api_key` is the key, or a function (plain or async) that gives it: it is asked once, and again when the service answers
    401. `headers` are sent with every call to the service. `ca_bundle` is a PEM file that replaces the system's
    certificates. `trust_env` honours HTTPS_PROXY, HTTP_PROXY and NO_PROXY. `key_header` is `Authorization`, which carries the
    key as a bearer, or another header that carries it as it is. Raises ConfigError for what can't work.
    """

    base_url: str = "https://api.openai.com/v1"
    api_key: KeySource = ""
    organization: str | None = None
    project: str | None = None
    headers: Mapping[str, str] | HeaderPairs = ()
    ca_bundle: str | None = None
    trust_env: bool = True
    allow_http: bool = False
    key_header: str = AUTHORIZATION

    def __post_init__(self) -> None:
        if self.base_url != LOCAL:
            _check_url(self.base_url, self.allow_http)
        if isinstance(self.api_key, str):
            check_key(self.api_key)
        for name, value in ((self.key_header, ""), *self.header_pairs):
            _check_header(name, value)

    @property
    def header_pairs(self) -> HeaderPairs:
        return tuple(self.headers.items()) if isinstance(self.headers, Mapping) else self.headers

    def __repr__(self) -> str:
        return f"Service({', '.join(f'{name}={shown!r}' for name, shown in self._shown())})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return list(self._shown())

    def _shown(self) -> Iterator[tuple[str, object]]:
        yield "base_url", self.base_url
        yield "api_key", "<function>" if callable(self.api_key) else "<set>" if self.api_key else "<none>"
        yield "organization", self.organization
        yield "project", self.project
        yield "headers", tuple(name for name, _ in self.header_pairs)
        yield "ca_bundle", self.ca_bundle
        yield "trust_env", self.trust_env
        yield "allow_http", self.allow_http
        yield "key_header", self.key_header


async def current_key(service: Service) -> str:
    """The key as of now. Raises ConfigError where its source gives none that can be sent."""
    key = service.api_key() if callable(service.api_key) else service.api_key
    if inspect.isawaitable(key):
        key = await key
    if not isinstance(key, str):
        raise ConfigError(
            f"The function given as api_key returned {type(key).__name__}; it must return the key as a text."
        )
    check_key(key)
    return key


def check_key(key: str) -> None:
    """Raises ConfigError for a key that no header can carry; the key itself is not shown."""
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError("The key holds a space, a line end or another character that no key has; copy it again.")


# -- where it is


def _check_url(url: str, allow_http: bool) -> None:
    shown = _without_secrets(url)
    if not url.isprintable() or " " in url:
        raise ConfigError(f"The base URL {shown!r} holds a space or a control character.")
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"The base URL {shown} is no http or https address; it looks like https://api.openai.com/v1.")
    if parts.username is not None:
        raise ConfigError(
            "The base URL holds a user name or a password; give the key by its variable or a key file instead."
        )
    if parts.query or parts.fragment:
        raise ConfigError(f"The base URL {shown} must end with its path, without ? or #.")
    if parts.scheme == "http" and not (allow_http or is_loopback(parts.hostname)):
        raise ConfigError(
            f"The base URL {shown} would send the key in clear text; use https, or allow it with --allow-http."
        )


def _split(url: str) -> SplitResult | None:
    """The parts of a URL, None where it has none; a port out of range counts as none."""
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        return None
    return parts


def _without_secrets(url: str) -> str:
    return one_line(re.sub(r"//[^/@]*@", "//…@", url.split("?")[0]))


def host_port(url: str) -> str:
    """`host:port` of a URL, the port as the scheme implies it."""
    parts = urlsplit(url)
    host = parts.hostname if parts.hostname is not None else ""
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or (443 if parts.scheme == 'https' else 80)}"


def is_loopback(host: str) -> bool:
    """Whether a host name or address always means this machine."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


# -- the way there


class Proxy(msgspec.Struct, frozen=True):
    """A forward proxy. `user` and `password` come from its URL and are shown nowhere."""

    url: str
    user: str | None = None
    password: str = ""

    def __repr__(self) -> str:
        return f"Proxy({self.url!r})"


def proxy_for(url: str, trust_env: bool) -> Proxy | None:
    """The proxy that the environment names for a URL; loopback is never proxied. Raises ConfigError for one that can't be used."""
    parts = urlsplit(url)
    host = parts.hostname
    if not trust_env or host is None or is_loopback(host):
        return None
    from urllib.request import getproxies, proxy_bypass  # 10 ms, and only whoever sends needs it

    proxies = getproxies()
    named = proxies.get(parts.scheme, proxies.get("all"))
    if not named or proxy_bypass(f"{host}:{parts.port}" if parts.port else host):
        return None
    return _proxy(named if "://" in named else f"http://{named}")


def _proxy(url: str) -> Proxy:
    parts = _split(url)
    if parts is None or parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            f"The proxy {_without_secrets(url)} from the environment can't be used: only http and https proxies can; change"
            " HTTPS_PROXY, or name the service in NO_PROXY."
        )
    plain = f"{parts.scheme}://{host_port(url)}"
    if parts.username is None:
        return Proxy(plain)
    return Proxy(plain, unquote(parts.username), unquote(parts.password or ""))


# -- headers, and what may be said

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OURS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "accept-encoding"})
_KEY_LIKE = re.compile(r"\b(?:sk|pk|gsk|key)-[\w*.…-]{4,}|\bBearer\s+\S+|\S*\*{3,}\S*", re.IGNORECASE)
_LONGEST_TEXT = 600


def _check_header(name: str, value: str) -> None:
    if not _TOKEN.fullmatch(name) or name.lower() in _OURS:
        raise ConfigError(
            f"The header {one_line(name)!r} can't be set; it is no header name, or one that the transport sets itself."
        )
    if not value.isprintable() or not value.isascii():
        raise ConfigError(f"The value of the header {name} holds characters that no header can carry.")


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """Service text made safe to show: no secret, nothing that looks like a key, no control characters, not too long."""
    for secret in sorted((s for s in secrets if len(s) > 3), key=len, reverse=True):
        text = text.replace(secret, "[redacted]")
    text = _KEY_LIKE.sub("[redacted]", one_line(text))
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"
