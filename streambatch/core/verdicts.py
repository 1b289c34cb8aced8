"""What a batch's state, or a refused create, means for its shard and for the run. Pure: nouns in, one verdict out.

A verdict is the event to journal, and whether the run must pause or halt because of it.
"""

import msgspec

from streambatch.core import events as e
from streambatch.core.jobs import RefusedLine
from streambatch.core.models import Shard
from streambatch.core.patience import WITHOUT, WORD
from streambatch.core.wire import BatchInfo, Refusal, refusal_of_batch, refusal_of_error, token_limit
from streambatch.errors import ApiError, Paused

SIZE_CODES = ("token_limit_exceeded", "request_limit_exceeded")  # refusals that a smaller shard may not meet
REFUSED_DAY_S = 86_400.0


class Verdict(msgspec.Struct, frozen=True):
    """`event` to journal; `pause` (exit 4) or `halt` (exit 2) carries the sentence when the run can't go on as it is,
    `stop` the service's error when only a later visit can go on."""

    event: e.ShardEvent
    pause: str | None = None
    halt: str | None = None
    retry_after_s: float | None = None
    stop: ApiError | None = None


def of_batch(shard: Shard, batch: BatchInfo) -> Verdict | None:
    """What a looked-up batch means; None while it is not finished. Words that nobody knows mean "not finished"."""
    if not batch.terminal:
        return None
    if batch.status == "failed" and not batch.ran:
        return _failed(shard, batch)
    return Verdict(_finished(shard, batch))


def _finished(shard: Shard, batch: BatchInfo, refused: tuple[RefusedLine, ...] = ()) -> e.BatchFinished:
    return e.BatchFinished(
        shard=shard.name,
        batch_id=batch.id,
        status=batch.status,
        output_id=batch.output_file_id,
        error_id=batch.error_file_id,
        total=batch.total,
        completed=batch.completed,
        failed=batch.failed,
        refused=refused,
    )


def _failed(shard: Shard, batch: BatchInfo) -> Verdict:
    """A batch that failed at validation: nothing of it ran."""
    first = batch.errors[0] if batch.errors else None
    reason = f"{first.code}: {first.message}" if first else "the service gave no reason"
    match refusal_of_batch(batch.errors):
        case Refusal.QUEUE_FULL:
            return Verdict(_queue_full(shard, reason, first.code if first else None))
        case Refusal.BILLING:
            return Verdict(e.Refused(shard=shard.name, reason=reason), pause=_billing(reason))
        case Refusal.FILE_GONE:
            return Verdict(e.InputLost(shard=shard.name, reason=reason))
        case Refusal.RUN:
            return Verdict(e.Refused(shard=shard.name, reason=reason), halt=_run_refused(shard, reason))
        case Refusal.ROWS if lines := _named_lines(shard, batch):
            return Verdict(_finished(shard, batch, lines))
        case _ if shard.rows == 1:
            return Verdict(_finished(shard, batch, (RefusedLine(1, first.code if first else "failed", reason),)))
        case _:
            return Verdict(_halved(shard, reason))


def _named_lines(shard: Shard, batch: BatchInfo) -> tuple[RefusedLine, ...]:
    """The lines of this shard that the service named; a number outside it names none."""
    named = (RefusedLine(x.line, x.code, x.message) for x in batch.errors if x.line is not None)
    return tuple(line for line in named if 1 <= line.line <= shard.rows)


def of_refused_create(shard: Shard, error: ApiError) -> Verdict | None:
    """What an answered, unsuccessful create means; None where the error is nobody's word on this shard."""
    reason = str(error)
    match refusal_of_error(error):
        case Refusal.QUEUE_FULL:
            return Verdict(_queue_full(shard, reason, error.code), retry_after_s=error.retry_after_s)
        case Refusal.BILLING:
            return Verdict(e.Refused(shard=shard.name, reason=reason), pause=_billing(reason))
        case Refusal.FILE_GONE:
            return Verdict(e.InputLost(shard=shard.name, reason=reason))
        case Refusal.RUN:
            return Verdict(e.Refused(shard=shard.name, reason=reason), halt=_run_refused(shard, reason))
        case Refusal.TOO_LARGE if shard.rows > 1:
            return Verdict(_halved(shard, reason))
        case _:
            return None


def of_refused_upload(shard: Shard, error: ApiError) -> e.Returned | None:
    """A file that is too large for the service goes back, to be cut smaller; None where the error says something else."""
    too_large = refusal_of_error(error) is Refusal.TOO_LARGE and shard.rows > 1
    return _halved(shard, str(error)) if too_large else None


def of_unpaid_upload(error: ApiError) -> str | None:
    """The sentence of a pause, where an upload is refused for billing reasons."""
    return _billing(str(error)) if refusal_of_error(error) is Refusal.BILLING else None


def forgotten(shard: Shard, base_url: str, strange_to_it: int) -> str:
    """The sentence of a pause, where a service no longer knows a batch. `strange_to_it`: how many the run has in flight, where
    the service knows none of them."""
    if strange_to_it:
        every = f"any of the {strange_to_it} batches that this run has in flight"
        batches = f"batch {shard.batch_id}" if strange_to_it == 1 else every
        return (
            f"The service at {base_url} does not know {batches}; is it another server, account or project than the run's? If so,"
            f" go back to that one, and everything goes on. Only if the batches are gone there: {WORD}"
        )
    return (
        f"The service at {base_url} no longer knows batch {shard.batch_id}, which runs {shard.rows} rows of shard {shard.name};"
        f" they may have been paid: {WORD}"
    )


def unproven(shard: Shard, why: str, word: str | None) -> e.GivenUp:
    """What the user's word makes of a create that nobody can say anything of. Raises Paused where there is none."""
    if word is None:
        raise Paused(f"{why.removesuffix('.')} {WITHOUT}")
    return e.GivenUp(shard=shard.name, batch_id=None, reason=why, gone=word)


def uncounted(shard: Shard, counted: int, found: int) -> str:
    """The sentence of a pause, where a service counts more rows than its files hold, look after look."""
    return (
        f"The service counts {counted} processed rows of batch {shard.batch_id} (shard {shard.name}, {shard.rows} rows), and its"
        f" result files hold {found}; {WORD}"
    )


def _queue_full(shard: Shard, reason: str, code: str | None) -> e.Refused | e.Returned:
    """No room just now. A shard that finds none twice, with nothing of ours in the queue, may never fit as it is; one that is
    well below the limit that the service names waits for other people's batches to leave."""
    limit = token_limit(reason)
    by_size = code in SIZE_CODES or "enqueued" in reason.lower()
    fits = limit is not None and 2 * shard.tokens <= limit  # ours is an estimate
    if shard.alone and by_size and not fits and shard.refused_alone and shard.rows > 1:
        return _halved(shard, reason)
    return e.Refused(shard=shard.name, reason=reason, limit=limit, alone=shard.alone)


def never_fits(shard: Shard, reason: str) -> str:
    """The sentence of a pause, where a shard found no room for a day, with nothing of ours in the queue."""
    rows = "1 row" if shard.rows == 1 else f"{shard.rows} rows"
    return (
        f"The service has refused shard {shard.name} ({rows}) for a day, with nothing else of this run in its queue ({reason});"
        " ask for a higher limit or wait until others have left the queue, then run the same command again."
    )


def _halved(shard: Shard, reason: str) -> e.Returned:
    return e.Returned(shard=shard.name, max_rows=max(1, shard.rows // 2), reason=reason)


def _billing(reason: str) -> str:
    advice = "settle that there, then run the same command again"
    return f"The service refuses to take more work for billing reasons ({reason}); {advice}."


def _run_refused(shard: Shard, reason: str) -> str:
    advice = "change the model, the endpoint or the input, and start a new run"
    return f"The service refuses every batch of this run ({reason}); {advice}."
