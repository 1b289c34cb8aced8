"""The services that a run can talk to, as data: limits, dialect, and where they and their keys are. Knows no HTTP and no files.

Figures are those of the services' own documents; where a document says "100 MB" it is taken at its smallest.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import msgspec

from streambatch.errors import ConfigError

MB = 10**6
CHAT = "/v1/chat/completions"
AUTHORIZATION = "Authorization"
KEY_HEADERS = (AUTHORIZATION, "api-key")
FILE = "file"  # the name of a profile that the user wrote


class Dialect(msgspec.Struct, frozen=True):
    """How a service wants to be asked. A run can't change it once it has begun.

    `purpose` goes with each upload, `window` with each create.
    """

    purpose: str = "batch"
    window: str = "24h"


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A service. A batch is cut for one model whatever the service takes: each takes that.

    `base_url` None: no address fits all of its users. The key stands in the variable `key_env` and is sent in `key_header`, in
    `Authorization` as a bearer. `endpoints` are all that its batches take; where none is named, the service says so itself.
    """

    name: str = FILE
    base_url: str | None = None
    key_env: str = "OPENAI_API_KEY"
    key_header: str = AUTHORIZATION
    max_requests: int = 50_000
    max_bytes: int = 209_715_200
    endpoints: tuple[str, ...] = ()
    dialect: Dialect = Dialect()
    expiry_s: tuple[int, int] | None = (
        3_600,
        2_592_000,
    )  # how long files may be told to stay; None: they can't be told


OPENAI = Profile(name="openai", base_url="https://api.openai.com/v1")
PROFILES: dict[str, Profile] = {
    each.name: each
    for each in (
        OPENAI,
        msgspec.structs.replace(OPENAI, name="openai-2024", max_bytes=100 * MB, endpoints=(CHAT,), expiry_s=None),
        Profile(
            name="azure",
            key_env="AZURE_OPENAI_API_KEY",
            max_requests=100_000,
            key_header="api-key",
            max_bytes=200 * MB,
            expiry_s=(1_209_600, 2_592_000),
        ),
        Profile(
            name="together",
            base_url="https://api.together.xyz/v1",
            key_env="TOGETHER_API_KEY",
            max_bytes=100 * MB,
            dialect=Dialect(purpose="batch-api"),
            expiry_s=None,
        ),
        Profile(
            name="groq",
            base_url="https://api.groq.com/openai/v1",
            key_env="GROQ_API_KEY",
            max_bytes=100 * MB,  # its pages say 200 MB, its SDK 100
            expiry_s=None,
        ),
        Profile(
            name="parasail",
            base_url="https://api.parasail.io/v1",
            key_env="PARASAIL_API_KEY",
            max_bytes=100 * MB,
            expiry_s=None,
        ),
        Profile(
            name="nebius",
            base_url="https://api.tokenfactory.nebius.com/v1",
            key_env="NEBIUS_API_KEY",
            max_requests=5_000_000,
            max_bytes=10_000 * MB,
            expiry_s=None,
        ),
    )
}


def named(name: str) -> Profile:
    """A profile that comes with the package. Raises ConfigError."""
    if name not in PROFILES:
        known = ", ".join(PROFILES)
        raise ConfigError(f"There is no profile {name!r}; known: {known}, or the path of a file that ends in .toml.")
    return PROFILES[name]


def check_endpoint(profile: Profile, endpoint: str) -> None:
    """Raises ConfigError for an endpoint that the service's batches don't take."""
    if profile.endpoints and endpoint not in profile.endpoints:
        whose = "the profile" if profile.name == FILE else f"the profile {profile.name}"
        raise ConfigError(
            f"Requests for {endpoint} can't be sent: {whose} takes {' and '.join(profile.endpoints)} alone; choose another"
            " --endpoint or --profile."
        )


# -- a profile that the user wrote


def of_table(table: Mapping[str, Any], where: str) -> Profile:
    """A profile from the keys of a file, the others as `openai` has them; `where` names the file. Raises ConfigError."""
    _check_keys(table, where)
    dialect = {name: table[name] for name in Dialect.__struct_fields__ if name in table}
    rest = {name: value for name, value in table.items() if name not in dialect}
    if not {"base_url", "key_env"} & rest.keys():  # a key of another service is not for OpenAI's address
        rest["base_url"] = OPENAI.base_url
    return msgspec.convert(rest | {"dialect": dialect}, Profile)


_TEXTS = ("base_url", "key_env", "key_header", "purpose", "window")
_COUNTS = ("max_requests", "max_bytes")
KEYS = (*_TEXTS, *_COUNTS, "endpoints")


def _check_keys(table: Mapping[str, Any], where: str) -> None:
    for name, value in table.items():
        if name not in KEYS:
            close = get_close_matches(name, KEYS, 1)
            hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(KEYS)}."
            raise ConfigError(f"The profile {where} has an unknown key {name!r}; {hint}")
        wrong = _fault(name, value)
        if wrong is not None:
            raise ConfigError(f"{name} in the profile {where} {wrong}.")


def _fault(name: str, value: object) -> str | None:
    """What is wrong with a value, in words that follow its name."""
    if name in _COUNTS:
        right = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        return None if right else "must be a whole number of 1 or more"
    if name == "endpoints":
        right = isinstance(value, list) and all(isinstance(each, str) and each.startswith("/") for each in value)
        return None if right else f'must be a list of paths such as ["{CHAT}"]'
    if not isinstance(value, str) or not value or not value.isprintable():
        return "must be a text that is not empty"
    if name == "key_header" and value not in KEY_HEADERS:
        return f"must be {' or '.join(KEY_HEADERS)}"
    return None
