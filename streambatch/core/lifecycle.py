"""The life of a shard: which event leads from which state to which, and what to do next.

`TRANSITIONS` is the machine; `apply` and `next_step` are pure. A pair that is not in the table is illegal.
"""

import msgspec

from streambatch.core import events as e
from streambatch.core.models import Shard, ShardState
from streambatch.errors import JournalError

S = ShardState

TRANSITIONS: dict[tuple[ShardState, type[e.ShardEvent]], ShardState] = {
    (S.SEALED, e.Uploaded): S.UPLOADED,
    (S.SEALED, e.Submitted): S.SUBMITTED,  # found in the list before anything was uploaded
    (S.SEALED, e.Returned): S.RETURNED,
    (S.UPLOADED, e.Intended): S.INTENDED,
    (S.UPLOADED, e.Submitted): S.SUBMITTED,  # found: an earlier copy of this run created it
    (S.UPLOADED, e.InputLost): S.SEALED,
    (S.UPLOADED, e.Returned): S.RETURNED,
    (S.INTENDED, e.Submitted): S.SUBMITTED,
    (S.INTENDED, e.Refused): S.UPLOADED,
    (S.INTENDED, e.InputLost): S.SEALED,
    (S.INTENDED, e.Doubted): S.DOUBTED,
    (S.INTENDED, e.Returned): S.RETURNED,
    (S.DOUBTED, e.Submitted): S.SUBMITTED,
    (S.DOUBTED, e.Absent): S.UPLOADED,
    (S.DOUBTED, e.GivenUp): S.DOWNLOADED,  # without a file: its rows are without a line
    (S.SUBMITTED, e.CancelAsked): S.SUBMITTED,
    (S.SUBMITTED, e.Refused): S.UPLOADED,
    (S.SUBMITTED, e.InputLost): S.SEALED,
    (S.SUBMITTED, e.Returned): S.RETURNED,
    (S.SUBMITTED, e.GivenUp): S.DOWNLOADED,
    (S.SUBMITTED, e.BatchFinished): S.FINISHED,
    (S.FINISHED, e.Admitted): S.ADMITTED,
    (S.ADMITTED, e.Downloaded): S.DOWNLOADED,
    (S.DOWNLOADED, e.Downloaded): S.DOWNLOADED,  # a second look found more
    (S.DOWNLOADED, e.Settled): S.SETTLED,
}


class Step(msgspec.Struct, frozen=True):
    """One thing to do for one shard; its class says what."""

    shard: Shard


class Upload(Step, frozen=True):
    """Send the file to the provider."""


class Create(Step, frozen=True):
    """Create the batch whose intent is journaled."""


class Search(Step, frozen=True):
    """Look for the batch of a doubted create."""


class Download(Step, frozen=True):
    """Fetch both result files."""


class Settle(Step, frozen=True):
    """Hold the results against the ids."""


STEPS: dict[ShardState, type[Step]] = {
    S.SEALED: Upload,
    S.INTENDED: Create,
    S.DOUBTED: Search,
    S.ADMITTED: Download,
    S.DOWNLOADED: Settle,
}
RENEW_S = 3600.0
WAITING = frozenset({S.UPLOADED, S.SUBMITTED, S.FINISHED})
FINAL = frozenset({S.SETTLED, S.RETURNED})
IN_FLIGHT = frozenset({S.INTENDED, S.DOUBTED, S.SUBMITTED})


def next_step(shard: Shard) -> Step | None:
    """What to do for a shard now; None where it waits for others, or is done."""
    step = STEPS.get(shard.state)
    return None if step is None else step(shard)


def apply(shard: Shard, event: e.ShardEvent) -> Shard:
    """The shard after `event`. Raises JournalError where the table has no such arrow."""
    state = TRANSITIONS.get((shard.state, type(event)))
    if state is None or event.shard != shard.name:
        raise JournalError(
            f"shard {shard.name} is {shard.state.value}: {type(event).__name__} of {event.shard} is illegal there."
        )
    return msgspec.structs.replace(shard, state=state, **_changes(shard, event))


def _changes(shard: Shard, event: e.ShardEvent) -> dict[str, object]:
    match event:
        case e.Uploaded(file_id=file_id, created_at=created_at, expires_at=expires_at):
            return {"file_id": file_id, "renew_at": renew_at(created_at, expires_at)}
        case e.InputLost():
            return {"file_id": None, "batch_id": None}
        case e.Intended(create=create, alone=alone):
            return {"create": _rising(shard, create), "alone": alone}
        case e.Submitted(batch_id=batch, file_id=file_id, create=create):
            known = shard.file_id if file_id is None else file_id
            number = max(create, shard.create)
            return {"batch_id": batch, "file_id": known, "create": number, "cancel_asked": False}  # of that batch
        case e.Refused(alone=alone):
            return {"batch_id": None, "refusals": shard.refusals + 1, "refused_alone": shard.refused_alone + alone}
        case e.CancelAsked():
            return {"cancel_asked": True}
        case e.BatchFinished(batch_id=batch, status=status, output_id=output_id, error_id=error_id):
            return {"batch_id": batch, "status": status, "output_id": output_id, "error_id": error_id}
        case e.GivenUp(gone=gone):
            return {"gone": gone}
        case e.Downloaded(output_id=output_id, error_id=error_id, gone=gone):
            late = {"output_id": output_id, "error_id": error_id, "gone": gone}
            return {name: told for name, told in late.items() if told is not None}
    return {}


def renew_at(created_at: float, expires_at: float | None) -> float | None:
    """An hour before a file expires, or half its life before, it is too old for a create; None: it stays."""
    return None if expires_at is None else expires_at - min(RENEW_S, (expires_at - created_at) / 2)


def _rising(shard: Shard, create: int) -> int:
    if create <= shard.create:
        raise JournalError(f"shard {shard.name} has used create number {shard.create}; {create} would repeat it.")
    return create
