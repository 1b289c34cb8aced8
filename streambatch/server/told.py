"""What a batch is told when its validation refuses it for a reason outside its file: a full queue, or the script."""

from typing import Any

from streambatch.server.limits import MAX_EMBEDDING_REQUESTS
from streambatch.server.profiles import Profile
from streambatch.server.rules import Fail
from streambatch.server.settings import Settings
from streambatch.server.validation import ORGANIZATION, Told, Verdict

SIZES = {"B": 10**9, "M": 10**6, "K": 10**3}
KNOWN = {
    "billing_hard_limit_reached": "Billing hard limit has been reached",
    "invalid_json_line": "This line is not parseable as valid JSON.",
    "model_not_found": "The provided model '{model}' is not supported by the Batch API.",
    "empty_file": "The input file is empty. Please ensure that the batch contains at least one request.",
}


def full_queue(
    verdict: Verdict, endpoint: str, settings: Settings, queued_tokens: int, queued_rows: int
) -> Told | None:
    """Why the model's queue has no room for this batch; None if it has."""
    limits = settings.service.limits
    if settings.tier is None or verdict.model is None or limits is None:
        return None
    limit = limits(verdict.model, settings.tier)
    if limit is not None and queued_tokens + verdict.tokens > limit:
        return _enqueued(verdict.model, limit, "token")
    if endpoint == "/v1/embeddings" and queued_rows + verdict.total > MAX_EMBEDDING_REQUESTS:
        return _enqueued(verdict.model, MAX_EMBEDDING_REQUESTS, "request")
    return None


def scripted(rule: Fail, verdict: Verdict, profile: Profile) -> Told:
    """The entry of a scripted failure, with the real message where one is known."""
    model = verdict.model if verdict.model is not None else "gpt-4o-mini"
    if rule.message is None and rule.code in ("token_limit_exceeded", "request_limit_exceeded"):
        if profile.abbreviates_limits:
            return Told(rule.code, _surpassed(rule.limit))
        return _enqueued(model, rule.limit, rule.code.partition("_")[0])
    message = KNOWN.get(rule.code, "The batch failed.").format(model=model) if rule.message is None else rule.message
    return Told(rule.code, message, rule.param, rule.line)


def in_words_of(profile: Profile, entry: Told) -> dict[str, Any]:
    """An entry with the code that this service has for it."""
    code = profile.codes.get(entry.code, entry.code)
    return {"code": code, "line": entry.line, "message": entry.message, "param": entry.param}


def _surpassed(limit: int) -> str:
    short = next(
        (f"{limit // size:,}{letter}" for letter, size in SIZES.items() if limit >= size and limit % size == 0),
        f"{limit}",
    )
    return f"The number of enqueued tokens has surpassed the configured limit of {short} for the deployment."


def _enqueued(model: str, limit: int, what: str) -> Told:
    message = (
        f"Enqueued {what} limit reached for {model} in organization {ORGANIZATION}. Limit: {limit:,} enqueued {what}s. "
        "Please try again once some in_progress batches have been completed."
    )
    return Told(f"{what}_limit_exceeded", message)
