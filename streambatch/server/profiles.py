"""The services that the server can be like, as data: endpoints, windows, limits, ids, words, and how a batch looks.

`openai` is the service today, `openai-2024` the one of 2024; the others are dialects that stay in OpenAI's shape.
"""

import secrets
import string
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from streambatch.server.dialects import Dialect, as_azure, as_it_is, as_of_2024, as_today, as_together
from streambatch.server.limits import enqueued_tokens, enqueued_tokens_2024
from streambatch.server.records import new_batch_id, new_file_id

DAY_S = 86_400
CHAT = "/v1/chat/completions"
TEXT = (CHAT, "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/moderations")
UNABLE = ("/v1/images/generations", "/v1/images/edits", "/v1/videos")  # taken at create; no model of ours can
PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
MIB = 1 << 20
MODELS_2024 = (
    "gpt-3.5-turbo", "gpt-3.5-turbo-16k", "gpt-3.5-turbo-0301", "gpt-3.5-turbo-0613", "gpt-3.5-turbo-16k-0613",
    "gpt-3.5-turbo-1106", "gpt-3.5-turbo-0125", "gpt-4", "gpt-4-0314", "gpt-4-0613", "gpt-4-32k", "gpt-4-32k-0314",
    "gpt-4-32k-0613", "gpt-4-turbo", "gpt-4-turbo-2024-04-09", "gpt-4-turbo-preview", "gpt-4-1106-preview",
    "gpt-4-0125-preview", "gpt-4-vision-preview",
)  # fmt: skip


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A service. `models` None: any name; `limits` None: it has no usage tiers; `codes` renames those of validation."""

    endpoints: tuple[str, ...] = TEXT + UNABLE
    windows: Mapping[str, int] = msgspec.field(default_factory=lambda: {"24h": DAY_S})
    purposes: tuple[str, ...] = PURPOSES
    batch_purposes: tuple[str, ...] = ("batch",)
    models: tuple[str, ...] | None = None
    one_model: bool = True
    max_requests: int = 50_000
    max_bytes: int = 200 * MIB
    shortest_expiry_s: int = 3_600
    longest_expiry_s: int = 30 * DAY_S
    limits: Callable[[str, str], int | None] | None = None
    codes: Mapping[str, str] = {}
    file_id: Callable[[], str] = new_file_id
    batch_id: Callable[[], str] = new_batch_id
    shape: Dialect = as_it_is
    wraps_create: bool = False
    bare_list: bool = False
    api_key_header: bool = False
    always_error_file: bool = False
    expires: bool = True
    abbreviates_limits: bool = False
    names_size_limit: bool = True  # a file that is too large: 413 that names the limit, or a bare 400


def _crockford(prefix: str) -> Callable[[], str]:
    """Ids of 26 characters that begin with 01."""
    letters = string.digits + "abcdefghjkmnpqrstvwxyz"
    return lambda: prefix + "01" + "".join(secrets.choice(letters) for _ in range(24))


OPENAI = Profile(limits=enqueued_tokens, shape=as_today)
PROFILES: dict[str, Profile] = {
    "openai": OPENAI,
    "openai-2024": Profile(
        endpoints=(CHAT,),
        models=MODELS_2024,
        max_bytes=100 * MIB,
        limits=enqueued_tokens_2024,
        shape=as_of_2024,
        names_size_limit=False,
    ),
    "azure": Profile(
        endpoints=("/chat/completions", CHAT, "/v1/responses"),
        max_requests=100_000,
        shortest_expiry_s=14 * DAY_S,
        codes={"invalid_url": "url_mismatch", "mismatched_model": "model_mismatch"},
        file_id=lambda: f"file-{secrets.token_hex(16)}",
        batch_id=lambda: f"batch_{uuid.uuid4()}",
        shape=as_azure,
        api_key_header=True,
        always_error_file=True,
        expires=False,
        abbreviates_limits=True,
    ),
    "together": Profile(
        endpoints=(CHAT, "/v1/completions"),
        purposes=(*PURPOSES, "batch-api"),
        batch_purposes=("batch", "batch-api"),
        max_bytes=100 * MIB,
        batch_id=lambda: str(uuid.uuid4()),
        shape=as_together,
        wraps_create=True,
        bare_list=True,
    ),
    "groq": Profile(
        endpoints=(CHAT,),
        windows={f"{24 * n}h": n * DAY_S for n in range(1, 8)} | {"7d": 7 * DAY_S},
        one_model=False,
        file_id=_crockford("file_"),
        batch_id=_crockford("batch_"),
    ),
}


def plain_endpoint(endpoint: str) -> str:
    """An endpoint as `openai` names it."""
    return endpoint if endpoint.startswith("/v1/") else f"/v1{endpoint}"


def wrapped(profile: Profile, shown: dict[str, Any]) -> dict[str, Any]:
    """The answer to a create."""
    return {"job": shown, "warning": ""} if profile.wraps_create else shown
