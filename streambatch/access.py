"""Where the service is and what opens it: address, headers and key, from options and from the variables that may name them.

Reads a key file; sends nothing, and says no key in any message.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from streambatch.core.profiles import FILE, OPENAI, Profile
from streambatch.edge.service import LOCAL, Service
from streambatch.errors import ConfigError

Values = Mapping[str, Any]
LOCAL_SERVICE = Service(base_url=LOCAL)
_SERVICE_OPTIONS = ("base_url", "api_key_env", "api_key_file", "header", "ca_bundle", "allow_http")


def chosen(values: Values, environ: Mapping[str, str], given: Service | None, profile: Profile) -> Service:
    """The embedded server, the one made by hand, or the one that options and variables name. Raises ConfigError."""
    if values.get("local"):
        check_local(values, given)
        return LOCAL_SERVICE
    return service(values, environ, profile) if given is None else by_hand(given, values, profile)


def check_local(values: Values, given: Service | None) -> None:
    """Refuse another service beside the embedded one. Raises ConfigError."""
    if "base_url" in values or given is not None:
        raise ConfigError("Both local and another service are given; leave one out.")


def by_hand(given: Service, values: Values, profile: Profile) -> Service:
    """A service made by hand, with the header that the profile names. Raises ConfigError for options that say the same again."""
    named = [name for name in _SERVICE_OPTIONS if name in values]
    if named:
        raise ConfigError(f"Both service and {named[0]} are given; leave one out.")
    if given.key_header != Service().key_header or profile.key_header == given.key_header:
        return given
    return msgspec.structs.replace(given, key_header=profile.key_header)


def service(values: Values, environ: Mapping[str, str], profile: Profile) -> Service:
    """The service and its key, from flags and the variables that the official SDK reads. Raises ConfigError."""
    return msgspec.structs.replace(keyless(values, environ, profile), api_key=key(values, environ, profile))


def keyless(values: Values, environ: Mapping[str, str], profile: Profile) -> Service:
    """The service, before there is a key. The variables of the official SDK are about OpenAI: another service is not told of
    them. Raises ConfigError."""
    own = environ if profile.base_url == OPENAI.base_url else {}
    url: str = values.get("base_url", own.get("OPENAI_BASE_URL", "")).rstrip("/")
    if url == LOCAL:
        raise ConfigError("The base URL local is the embedded server's; ask for it with --local.")
    if not url and profile.base_url is None:
        whose = "your profile" if profile.name == FILE else f"the profile {profile.name}"
        raise ConfigError(f"There is no base URL: {whose} has none that fits everybody; give yours with --base-url.")
    return Service(
        base_url=url if url else str(profile.base_url),
        organization=own.get("OPENAI_ORG_ID"),
        project=own.get("OPENAI_PROJECT_ID"),
        headers=_headers(values, environ),
        ca_bundle=values.get("ca_bundle"),
        allow_http=values.get("allow_http", False),
        key_header=profile.key_header,
    )


def _headers(values: Values, environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    headers = []
    for name, source in values.get("header", ()):
        kind, colon, variable = source.partition(":")
        if kind != "env" or not colon:
            raise ConfigError(f"The header {name} must take its value from a variable: {name}=env:VAR.")
        if variable not in environ:
            raise ConfigError(f"The header {name} takes its value from the variable {variable}, which is not set.")
        headers.append((name, environ[variable]))
    return tuple(headers)


def key(values: Values, environ: Mapping[str, str], profile: Profile) -> str | Callable[[], str]:
    """The key, or for a key file the function that reads it again. Raises ConfigError."""
    path = values.get("api_key_file")
    if path is not None:
        if "api_key_env" in values:
            raise ConfigError("Both api_key_env and api_key_file are given; leave one out.")
        _key_in(path)
        return lambda: _key_in(path)
    variable = values.get("api_key_env", profile.key_env)
    found = environ.get(variable, "").strip()
    if not found:
        is_name = re.fullmatch("[A-Z_][A-Z0-9_]*", variable) is not None  # else it may be a key itself
        known = f" {variable}" if is_name else " named for it"
        raise ConfigError(
            f"There is no key: the variable{known} is not set; set it, or name another with --api-key-env or a file with"
            " --api-key-file, or try --local, which needs none."
        )
    return found


def _key_in(path: str) -> str:
    found = read_text(path, "The key file").strip()
    if not found:
        raise ConfigError(f"The key file {path} is empty.")
    return found


def read_text(path: str, what: str) -> str:
    """A file of UTF-8, be there a mark at its start. Raises ConfigError, which calls it `what`."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            return file.read()
    except OSError as error:
        raise ConfigError(f"{what} {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not UTF-8.") from error
