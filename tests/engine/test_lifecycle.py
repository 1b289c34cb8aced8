"""The machine of a shard: every arrow of the table works, every other pair of state and event raises."""

import typing

import msgspec
import pytest

from streambatch.core import events as e
from streambatch.core import lifecycle
from streambatch.core.models import Shard, ShardState, Usage
from streambatch.errors import JournalError

SAMPLES: dict[type[e.ShardEvent], e.ShardEvent] = {
    e.Uploaded: e.Uploaded("s", "file-1", 1.0),
    e.InputLost: e.InputLost("s", "gone"),
    e.Intended: e.Intended("s", 7),
    e.Doubted: e.Doubted("s", 7, "cut"),
    e.Absent: e.Absent("s", 7),
    e.Submitted: e.Submitted("s", "batch_1", "file-1", 7),
    e.Refused: e.Refused("s", "full", 90_000),
    e.CancelAsked: e.CancelAsked("s", "batch_1"),
    e.BatchFinished: e.BatchFinished("s", "batch_1", "completed", "file-o", None, 3, 3, 0),
    e.Admitted: e.Admitted("s"),
    e.Downloaded: e.Downloaded("s", True, False),
    e.GivenUp: e.GivenUp("s", "batch-1", "stuck", "rebuy"),
    e.Settled: e.Settled("s", 3, 0, (), (), Usage(), 0, 0, 0),
    e.Returned: e.Returned("s", 1, "too large"),
}


def a_shard(state: ShardState) -> Shard:
    return Shard("s", 0, 0, 0, 0, "m", 3, 100, 25, "hash", state=state)


def test_every_kind_of_shard_event_has_a_sample() -> None:
    kinds = {kind for kind in typing.get_args(e.AnyEvent) if issubclass(kind, e.ShardEvent)}
    assert kinds == set(SAMPLES)


@pytest.mark.parametrize("state", ShardState)
@pytest.mark.parametrize("kind", SAMPLES)
def test_an_event_leads_where_the_table_says_or_raises(state: ShardState, kind: type[e.ShardEvent]) -> None:
    wanted = lifecycle.TRANSITIONS.get((state, kind))
    if wanted is None:
        with pytest.raises(JournalError, match="illegal"):
            lifecycle.apply(a_shard(state), SAMPLES[kind])
    else:
        assert lifecycle.apply(a_shard(state), SAMPLES[kind]).state is wanted


def test_an_event_of_another_shard_is_illegal() -> None:
    other = msgspec.structs.replace(a_shard(ShardState.SEALED), name="t")
    with pytest.raises(JournalError, match="illegal"):
        lifecycle.apply(other, SAMPLES[e.Uploaded])


def test_every_state_has_an_exit_or_is_final() -> None:
    leaving = {state for (state, _), after in lifecycle.TRANSITIONS.items() if after is not state}
    assert leaving == set(ShardState) - lifecycle.FINAL


def test_every_state_has_a_step_or_waits_or_is_final() -> None:
    assert set(lifecycle.STEPS) | lifecycle.WAITING | lifecycle.FINAL == set(ShardState)
    assert not set(lifecycle.STEPS) & (lifecycle.WAITING | lifecycle.FINAL)


def test_an_intent_goes_before_every_create() -> None:
    """Only a journaled intent leads to the step that creates a batch."""
    creating = [state for state, step in lifecycle.STEPS.items() if step is lifecycle.Create]
    assert creating == [ShardState.INTENDED]
    into = {kind for (_, kind), after in lifecycle.TRANSITIONS.items() if after is ShardState.INTENDED}
    assert into == {e.Intended}


def test_a_create_number_is_never_used_twice() -> None:
    shard = lifecycle.apply(a_shard(ShardState.UPLOADED), e.Intended("s", 4))
    back = lifecycle.apply(shard, e.Refused("s", "full"))
    with pytest.raises(JournalError, match="repeat"):
        lifecycle.apply(back, e.Intended("s", 4))
    assert lifecycle.apply(back, e.Intended("s", 5)).create == 5


def test_a_refusal_keeps_the_uploaded_file() -> None:
    shard = lifecycle.apply(a_shard(ShardState.SEALED), SAMPLES[e.Uploaded])
    shard = lifecycle.apply(shard, e.Intended("s", 1))
    assert lifecycle.apply(shard, SAMPLES[e.Refused]).file_id == "file-1"
