"""Whether to try a call again, and when: pure, given the error, the attempt and a random number.

Knows no clock and no client; what a create may not repeat is said here, obeyed by `edge.retrying`.
"""

import msgspec

from streambatch.errors import ApiError

SPREAD_S = 10.0  # the most that chance adds to a wait that was asked for


class RetryPolicy(msgspec.Struct, frozen=True):
    """Waits grow from `first_wait_s` by `factor` to `max_wait_s`; `jitter` is the part of a wait that chance may take off.

    A call that has failed for `max_elapsed_s`, and at least `min_attempts` times, is given up.
    """

    first_wait_s: float = 0.5
    factor: float = 2.0
    max_wait_s: float = 60.0
    jitter: float = 0.25
    max_elapsed_s: float = 900.0
    min_attempts: int = 5


class Retry(msgspec.Struct, frozen=True):
    """Try again after this wait."""

    after_s: float


class GiveUp(msgspec.Struct, frozen=True):
    """The error stands."""


def decide(error: ApiError, attempt: int, random: float, policy: RetryPolicy, elapsed_s: float = 0.0) -> Retry | GiveUp:
    """What to do after failed attempt number `attempt` (from 1), `elapsed_s` after the first one failed; `random` is in [0, 1).

    A wait that the service asks for is never cut short, only lengthened by chance so that callers don't return together.
    """
    if not error.retryable:
        return GiveUp()
    wait_s = _wait(error.retry_after_s, attempt, random, policy)
    worn_out = elapsed_s + wait_s > policy.max_elapsed_s
    asked_too_much = error.retry_after_s is not None and error.retry_after_s > policy.max_elapsed_s
    if asked_too_much or (worn_out and attempt >= policy.min_attempts):
        return GiveUp()
    return Retry(wait_s)


def _wait(retry_after_s: float | None, attempt: int, random: float, policy: RetryPolicy) -> float:
    grown = policy.first_wait_s * policy.factor ** min(attempt - 1, 64)
    backoff = min(policy.max_wait_s, grown) * (1 - policy.jitter * random)
    if retry_after_s is None:
        return backoff
    least = max(retry_after_s, policy.first_wait_s * (1 - policy.jitter))  # "0" must not become a hot loop
    return least + min(policy.jitter * least, SPREAD_S) * random


def may_repeat_create(error: ApiError) -> bool:
    """Whether a failed create may be sent again without a search: only when it was certainly never written.

    A 429 is an answer about the shard: its caller decides, with the whole queue in view.
    """
    return error.retryable and not error.maybe_done and error.status != 429
